"""Adapters (LoRA) of a request: files, each with a scale and the digest by which it is known again.

Where files may come from is not the request's to say: a caller in Python and the command line name any file or folder
of PEFT's, a client of a server names a file in the folder that the server's owner has named. Files are read as bytes
here; what is in them, `max_zimage.checkpoint.adapters` knows.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath

from max_zimage.errors import Item, RequestError

SUFFIX = ".safetensors"
USUAL_SCALE = 1.0

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What PEFT writes into a folder."""
_CHUNK = 1 << 20
_SHOWN = 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """One adapter of a request.

    Attributes:
        path: Its file, or the folder in which PEFT has put it.
        scale: Times what it adds to the weights; below 0 it is taken away.
        digest: "sha256:" and the hexadecimal SHA-256 of the file, as it was when the request was made; of PEFT's
            configuration before it where there is one, without which it would be another adapter.
    """

    path: str
    scale: float
    digest: str

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return PurePath(self.path).name


def without_folders(text: str, loras: Iterable[Lora]) -> str:
    """A message with files by their names, for those who are not to know where they lie."""
    for each in loras:
        text = text.replace(each.path, each.name)
    return text


def is_digest(value: object) -> bool:
    """Whether a value is what `digest_of` makes."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def digest_of(path: Path) -> str:
    """By which a file is known again, whatever its name: see `Lora`.

    Raises:
        OSError: If it cannot be read.
    """
    files = [Path(os.path.abspath(each)) for each in _files(path)]
    stamps = [(str(each), (found := each.stat()).st_size, found.st_mtime_ns, found.st_ino) for each in files]
    return _digest(tuple(stamps))


def _files(path: Path) -> tuple[Path, ...]:
    """What an adapter consists of: a file, or PEFT's configuration and its weights."""
    folder = path if path.is_dir() else path.parent
    is_peft = (path.is_dir() or path.name == _WEIGHTS) and (folder / _CONFIG).is_file()
    return (folder / _CONFIG, folder / _WEIGHTS) if is_peft else (path,)


@lru_cache(maxsize=64)
def _digest(stamps: tuple[tuple[str, int, int, int], ...]) -> str:
    """Of files, each told from what it was by its size, its time and its number."""
    found = hashlib.sha256()
    for file, *_ in stamps:
        with Path(file).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
    return f"sha256:{found.hexdigest()}"


@dataclass(frozen=True)
class LoraFiles:
    """Where adapters may come from: any file, or folder of PEFT's, named by its path."""

    def find(self, item: Item, name: str) -> Path:
        """The file of a name.

        Args:
            item: For messages.
            name: As it was given.

        Raises:
            RequestError: If there is no such file.
        """
        path = Path(name)
        if path.is_file() or (path / _CONFIG).is_file():
            return path
        what = "a folder; name the file in it" if path.is_dir() else "no file; name one that is there"
        raise RequestError.of(item, "{field}: {given} is {what}", given=name, what=what + _meant_scale(path))

    def names(self) -> tuple[str, ...]:
        """What may be named, where that can be listed."""
        return ()


@dataclass(frozen=True)
class LorasOfFolder(LoraFiles):
    """Files that lie in one folder, named without it; for callers who may not read any other.

    Attributes:
        folder: The folder, or None: then there are none.
    """

    folder: Path | None

    def find(self, item: Item, name: str) -> Path:
        """The file of a name.

        Args:
            item: For messages.
            name: As it was given: a name, and no path.

        Raises:
            RequestError: If it is a path, or there is no such file, with those that there are.
        """
        if self.folder is None:
            message = "{field}: this server has no adapters; its owner names a folder of them with --lora-folder"
            raise RequestError.of(item, message)
        known = self.names()
        if name in known:
            return self.folder / name
        there = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
        message = "{field}: {given!r} is none of this server's adapters; it has {there}"
        raise RequestError.of(item, message, given=name[:80], there=there or "none")

    def names(self) -> tuple[str, ...]:
        """The files of the folder, by name; links that leave it are none of them."""
        if self.folder is None:
            return ()
        try:
            root = self.folder.resolve(strict=True)
            listed = sorted(root.iterdir())
        except OSError:  # it is gone: then there are none
            return ()
        return tuple(path.name for path in listed if path.suffix == SUFFIX and _lies_in(path, root))


def _lies_in(path: Path, root: Path) -> bool:
    """Whether a name of a folder stands for a file in it, links followed."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links that lead to themselves
        return False
    return real.is_relative_to(root) and real.is_file()


def _meant_scale(path: Path) -> str:
    """A hint where a file's name is followed by what may have been meant as a scale."""
    file, colon, _ = str(path).rpartition(":")
    return f"; behind the colon of {file} a scale is a number" if colon and Path(file).is_file() else ""
