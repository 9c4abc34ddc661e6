"""What `benchmarks.gpu_run.pack` has made, put together again: `python -m benchmarks.gpu_run.unpack KIT --work DIR`.

It needs nothing but Python, for it runs before anything that it brings can be imported. Parts that did not come are no
error if their whole archive is missing: the compiler is only wanted where an artifact is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

MANIFEST = "manifest.json"
SITE = "site"
"""Folder of the packages in the work folder."""
_CHUNK = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Unpack; 1 if something is missing or damaged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run.unpack", description=__doc__)
    parser.add_argument("kit", type=Path, metavar="KIT", help="folder of the parts and their manifest")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where to")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    try:
        done = unpack(options.kit, options.work)
    except (OSError, ValueError) as error:
        print(f"unpack: {error}", file=sys.stderr)
        return 1
    print(f"{', '.join(done)} in {options.work} after {time.monotonic() - begin:.1f} s")
    return 0


def unpack(kit: Path, work: Path) -> list[str]:
    """Unpack the archives of which all parts are there.

    Args:
        kit: Folder of the parts and their manifest.
        work: Where to; what stands there under the same names is replaced.

    Returns:
        Names of the archives.

    Raises:
        ValueError: If there is no manifest, parts of an archive are missing or damaged, or the archive that everything
            else needs is not there.
    """
    file = kit / MANIFEST
    if not file.is_file():
        raise ValueError(f"{kit} holds no {MANIFEST}; name the folder that benchmarks.gpu_run.pack has made")
    manifest = json.loads(file.read_text(encoding="utf-8"))
    work.mkdir(parents=True, exist_ok=True)
    done = []
    for name, archive in manifest["archives"].items():
        parts = [kit / part for part in archive["parts"]]
        missing = [part.name for part in parts if not part.is_file()]
        if len(missing) == len(parts) and not archive["needed"]:
            continue
        if missing:
            raise ValueError(f"{name}: {', '.join(missing)} of {len(parts)} parts are not in {kit}")
        if _digest(parts) != archive["sha256"]:
            raise ValueError(f"{name}: its {len(parts)} parts in {kit} are not what was packed; copy them again")
        with lzma.open(_Chain(parts), "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            tar.extractall(work, filter="tar")
        done.append(name)
    shutil.copyfile(file, work / MANIFEST)
    return done


def word(work: Path, name: str) -> str:
    """What the manifest of an unpacked kit says of something, such as the commit; empty where there is none."""
    file = work / MANIFEST
    return str(json.loads(file.read_text(encoding="utf-8")).get(name, "")) if file.is_file() else ""


def use(work: Path, *, small: bool) -> None:
    """Prefer the packages and graphs of an unpacked kit, here and in every process that is started."""
    root = Path(__file__).resolve().parents[2]
    folders = [str(folder) for folder in (work / SITE, root) if folder.is_dir()]
    sys.path[:0] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH", "")]))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OTEL_SDK_DISABLED", "true")
    if not small:  # a small model's graphs are those of the tests, which the user's own folders hold
        os.environ.setdefault("MAX_ZIMAGE_CACHE", str(work / "graphs"))
        os.environ.setdefault("MODULAR_CACHE_DIR", str(work / "max"))


def _digest(parts: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


class _Chain:
    """Files one behind the other, to be read once."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._files: Iterator[IO[bytes]] = (part.open("rb") for part in parts)
        self._file: IO[bytes] | None = next(self._files, None)

    def read(self, size: int = -1) -> bytes:
        """Bytes of one file; none at the end of the last."""
        while self._file is not None:
            if read := self._file.read(size):
                return read
            self._file.close()
            self._file = next(self._files, None)
        return b""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a chain of files can only be read, not {name}")


if __name__ == "__main__":
    sys.exit(main())
