"""Files that cannot grow: graphs that are kept and pictures that are saved under limits of file sizes.

A limit fails a write where a full disk does, at any byte, and needs no disk of its own. What is computed must be right,
what is on disk whole or absent, and what cannot be saved said.
"""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef
from PIL import Image

from max_zimage.cli import saving
from max_zimage.compile import artifacts
from max_zimage.compile.compiler import compile_graph
from max_zimage.compile.kept_kernels import PREFIX
from max_zimage.compile.turns import FILE
from max_zimage.device.devices import download, upload
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.latents import PackLatents
from max_zimage.host import folders
from max_zimage.images.save import ImageFileError
from tests.fuzzers.tally import Tally
from tests.images.test_save import PARAMETERS

_LARGEST = 400_000  # bytes; the graph and the pictures are smaller
_CHANNELS = 4


def fuzz(count: int, seed: int = 0) -> Tally:
    """Keep graphs and save pictures under limits.

    Args:
        count: Limits; each is tried on a graph and on a picture.
        seed: Draws the limits and the pictures.
    """
    tally, draw = Tally(), Random(seed)
    room, folders._MAX_ROOM = folders._MAX_ROOM, 0  # MAX's own cache has the graph: nothing is compiled again
    before, temporary = os.environ.get("MAX_ZIMAGE_CACHE"), tempfile.tempdir
    try:
        with tempfile.TemporaryDirectory(prefix="max-zimage-fuzz-") as folder:
            os.environ["MAX_ZIMAGE_CACHE"] = str(Path(folder, "first"))
            session = InferenceSession([CPU()])
            expected = _packed(session)
            for index in range(count):
                limit = int(_LARGEST ** draw.uniform(0.5, 1))
                place = Path(folder, str(index))
                (place / "elsewhere").mkdir(parents=True)
                os.environ["MAX_ZIMAGE_CACHE"] = str(place / "kept")
                tempfile.tempdir = str(place / "elsewhere")
                _keep(tally, f"seed {seed}, input {index}, limit {limit}", session, limit, place / "kept", expected)
                _save(tally, f"seed {seed}, input {index}, limit {limit}", draw, limit, place)
    finally:
        folders._MAX_ROOM, tempfile.tempdir = room, temporary
        if before is None:
            os.environ.pop("MAX_ZIMAGE_CACHE", None)
        else:
            os.environ["MAX_ZIMAGE_CACHE"] = before
    return tally


@contextmanager
def _limited(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _packed(session: InferenceSession) -> np.ndarray:
    module = build(lambda: PackLatents(_CHANNELS), DType.float32, DeviceRef.CPU())
    types = module.input_types(DType.float32, DeviceRef.CPU())
    graph = compile_graph("pack", module, types, {}, session, spec=None, device=CPU())
    latents = np.arange(_CHANNELS * 24, dtype=np.float32).reshape(1, _CHANNELS, 2, 2, 3, 2)
    return np.asarray(download(graph(upload(latents, CPU()))[0]))


def _keep(tally: Tally, what: str, session: InferenceSession, limit: int, kept: Path, expected: np.ndarray) -> None:
    tally.tried += 1
    with _limited(limit):
        got = _packed(session)
    files = [path for path in kept.iterdir() if path.name != FILE and not path.name.startswith(PREFIX)]
    whole = [path for path in files if artifacts.find(path.name.rsplit(".", 2)[0]) == path]
    if np.array_equal(got, expected) and files == whole and len(files) <= 1:
        tally.right += 1
    else:
        tally.wrong.append(f"{what}: a graph left {[path.name for path in files]}")


def _save(tally: Tally, what: str, draw: Random, limit: int, place: Path) -> None:
    tally.tried += 1
    side, problems = draw.choice([16, 64, 128, 256]), list[str]()
    pixels = np.frombuffer(draw.randbytes(side * side * 3), np.uint8).reshape(side, side, 3)
    refused = ""
    try:
        with _limited(limit):
            saved = saving.save_picture(pixels, place / "picture.png", PARAMETERS, problems)
    except ImageFileError as error:
        refused = str(error)
    files = [path for path in (*place.iterdir(), *(place / "elsewhere").iterdir()) if path.is_file()]
    if refused:
        if files or "File too large" not in refused:
            tally.wrong.append(f"{what}: a picture left {[path.name for path in files]} and said {refused}")
        tally.refused += 1
    elif files == [saved] and np.array_equal(np.asarray(Image.open(saved)), pixels):
        tally.right += 1
    else:
        tally.wrong.append(f"{what}: a picture was not whole, or left {[path.name for path in files]}")
