"""Kept graphs with damaged bytes: none may reach MAX, which would run them, and each start ends in the same picture."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from max_zimage.compile import artifacts
from max_zimage.host.folders import artifact_folder
from tests.fuzzers.tally import Tally

_STARTS_EACH = 100  # one start of the whole program for so many inputs that are only offered to the look-up
_DRAW = ["-m", "max_zimage", "generate", "a red star", "--quiet", "--device", "cpu", "--seed", "1"]
_DRAW += ["--height", "64", "--width", "64", "--steps", "1", "--guidance", "2", "--guidance-variant", "apg"]
SMALL = "guided_update"
"""Compiled again in seconds."""
ALL = "denoise+"
"""The one with most graphs; compiled again in minutes."""


def _inverted(whole: bytes, draw: Random) -> bytes:
    length = min(len(whole), draw.choice([1, 16, 512, 4096, 65536]))
    start = draw.randrange(len(whole) - length + 1)
    return whole[:start] + bytes(byte ^ 255 for byte in whole[start : start + length]) + whole[start + length :]


def _zeroed(whole: bytes, draw: Random) -> bytes:
    length = min(len(whole), draw.choice([512, 4096, 65536]))
    start = draw.randrange(len(whole) - length + 1)
    return whole[:start] + bytes(length) + whole[start + length :]


def _one_bit(whole: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :]


def _inverted_at(percent: int) -> Callable[[bytes, Random], bytes]:
    def damage(whole: bytes, draw: Random) -> bytes:
        start = len(whole) * percent // 100
        return whole[:start] + bytes(byte ^ 255 for byte in whole[start : start + 4096]) + whole[start + 4096 :]

    return damage


DAMAGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "4 KiB inverted at 2 %": _inverted_at(2),
    "4 KiB inverted at 10 %": _inverted_at(10),
    "inverted": _inverted,
    "zeroed": _zeroed,
    "one bit": _one_bit,
    "truncated": lambda whole, draw: whole[: draw.randrange(1, len(whole))],
    "empty": lambda whole, draw: b"",
    "longer": lambda whole, draw: whole + draw.randbytes(draw.randrange(1, 4096)),
    "begins later": lambda whole, draw: draw.randbytes(draw.randrange(1, 512)) + whole,
}
"""Ways in which files get damaged: bytes -> other bytes, unless it is chance that they are the same."""


def fuzz(count: int, seed: int = 0, graphs: str = ALL) -> Tally:
    """Damage the graphs of the embedded model, as a first start keeps or finds them, at random places.

    Args:
        count: Damaged files.
        seed: Draws the damage.
        graphs: How the names of the artifacts begin of which one is damaged.
    """
    tally, draw = Tally(), Random(seed)
    with tempfile.TemporaryDirectory(prefix="max-zimage-fuzz-") as folder:
        kept = Path(folder, "kept")
        kept.mkdir()
        usual = artifact_folder()
        assert usual is not None, "this user has no home; set MAX_ZIMAGE_CACHE"
        expected = _picture(usual, Path(folder, "first.png"))
        copies = {each: shutil.copy(_last_used(usual, each), kept) for each in (ALL, SMALL)}
        path = Path(copies[graphs])
        whole, name = path.read_bytes(), path.name.rsplit(".", 2)[0]
        before, os.environ["MAX_ZIMAGE_CACHE"] = os.environ.get("MAX_ZIMAGE_CACHE"), str(kept)
        try:
            for index in range(count):
                kind = draw.choice(list(DAMAGES))
                damaged = DAMAGES[kind](whole, draw)
                _try(tally, f"seed {seed}, input {index}, {kind}", damaged, whole, path, name)
                if index % _STARTS_EACH == 0:
                    path.write_bytes(damaged)
                    try:
                        same = _picture(kept, Path(folder, f"{index}.png")) == expected
                    except subprocess.CalledProcessError as error:
                        same = False
                        tally.wrong.append(
                            f"seed {seed}, input {index}, {kind}: the start ended with {error.returncode}"
                        )
                    tally.tried += 1
                    tally.right += same
                    for again in kept.glob(f"{graphs}*.mef"):  # the same graphs compiled again are other bytes
                        again.unlink()
        finally:
            if before is None:
                del os.environ["MAX_ZIMAGE_CACHE"]
            else:
                os.environ["MAX_ZIMAGE_CACHE"] = before
    return tally


def _last_used(folder: Path, graphs: str) -> Path:
    return max(folder.glob(f"{graphs}*.*.mef"), key=lambda kept: kept.stat().st_mtime)


def _try(tally: Tally, what: str, damaged: bytes, whole: bytes, path: Path, name: str) -> None:
    tally.tried += 1
    path.write_bytes(damaged)
    found = artifacts.find(name)
    if damaged == whole and found == path:
        tally.right += 1
    elif damaged != whole and found is None and not path.exists():
        tally.refused += 1
    else:
        tally.wrong.append(f"{what}: {len(damaged)} bytes of {len(whole)} were taken for {found}")


def _picture(kept: Path, file: Path) -> bytes:
    """What a start draws, without the parameters that are beside the pixels."""
    from PIL import Image

    environment = {**os.environ, "MAX_ZIMAGE_CACHE": str(kept)}
    subprocess.run([sys.executable, *_DRAW, "--output", str(file)], env=environment, check=True, capture_output=True)
    with Image.open(file) as picture:
        return picture.tobytes()
