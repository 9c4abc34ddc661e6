"""Start images by format, mode, bit depth, chunk, orientation and profile, through every way in; and damaged ones."""

from __future__ import annotations

import base64
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from max_zimage.errors import RequestError
from max_zimage.images.read import decode_image, image_of_data_url, picture_pixels, read_image
from tests.fuzzers.image_cases import Case, png
from tests.fuzzers.image_lossy import jpeg, webp
from tests.fuzzers.image_modes import picture
from tests.fuzzers.tally import Tally

_MAKERS = (png, png, jpeg, webp, picture)
_SECONDS = 20.0  # for some hundred pixels: none hangs


def fuzz(count: int, seed: int = 0) -> Tally:
    """Try start images; each is tried whole and with some of its bytes damaged.

    Args:
        count: How many are drawn.
        seed: They are the same for the same seed.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            rng = np.random.default_rng([seed, index])
            case = _MAKERS[int(rng.integers(len(_MAKERS)))](rng)
            for way, read in _ways(case, Path(folder) / "picture.txt").items():
                _judge(tally, f"seed {seed}, index {index}, {way}: {case.label}", case, read)
            if case.content:
                _judge_damaged(tally, f"seed {seed}, index {index}, damaged: {case.label}", _damaged(rng, case.content))
    return tally


def _ways(case: Case, path: Path) -> dict[str, Callable[[], np.ndarray]]:
    if case.picture is not None:
        given = case.picture
        return {"picture": lambda: picture_pixels("image", given)}
    path.write_bytes(case.content)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "bytes": lambda: decode_image("image", case.content),
        "data URL": lambda: image_of_data_url(
            "image", "data:image/png;base64," + base64.b64encode(case.content).decode()
        ),
        "file": lambda: read_image("image", path),
    }
    if case.opens:
        ways["Pillow"] = lambda: picture_pixels("image", Image.open(io.BytesIO(case.content)))
    return ways


def _judge(tally: Tally, label: str, case: Case, read: Callable[[], np.ndarray]) -> None:
    tally.tried += 1
    result, said = _run(read)
    if isinstance(result, RequestError):
        if case.expected is None and case.refusal in str(result):
            tally.refused += 1
        else:
            tally.wrong.append(f"{label}: {result}")
        return
    if not isinstance(result, np.ndarray):
        tally.wrong.append(f"{label}: {result!r}")
    elif case.expected is None:
        tally.wrong.append(f"{label}: taken, and should be refused for {case.refusal}")
    elif result.shape != case.expected.shape or result.dtype != np.uint8:
        tally.wrong.append(f"{label}: {result.dtype} {result.shape}, expected {case.expected.shape}")
    elif (difference := int(np.abs(result.astype(int) - case.expected).max())) > case.tolerance:
        tally.wrong.append(f"{label}: off by {difference} levels, at most {case.tolerance} are allowed")
    elif [text for text in said if "colour profile" not in text] or (case.warns and not said):
        tally.wrong.append(f"{label}: warned of {said}")
    else:
        tally.right += 1


def _judge_damaged(tally: Tally, label: str, content: bytes) -> None:
    """Either a picture or a refusal must come of it."""
    tally.tried += 1
    begun = time.monotonic()
    result, said = _run(lambda: decode_image("image", content))
    seconds = time.monotonic() - begun
    if isinstance(result, RequestError):
        tally.refused += 1
    elif not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.ndim != 3:
        tally.wrong.append(f"{label}: {result!r}")
    else:
        tally.right += 1
    if seconds > _SECONDS:
        tally.wrong.append(f"{label}: took {seconds:.0f} s")
    if any("colour profile" not in text for text in said):
        tally.wrong.append(f"{label}: warned of {said}")


def _run(read: Callable[[], np.ndarray]) -> tuple[object, list[str]]:
    """What came of it, an error included, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result: object = read()
        except Exception as error:
            result = error
    return result, [str(warning.message) for warning in caught]


def _damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """A file with some bytes changed, left out, put in or cut off."""
    data = bytearray(content)
    kind = int(rng.integers(4))
    place = int(rng.integers(len(data)))
    if kind == 0:
        for _ in range(int(rng.integers(1, 20))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        del data[place : place + int(rng.integers(1, 40))]
    else:
        data[place:place] = rng.bytes(int(rng.integers(1, 40)))
    return bytes(data)
