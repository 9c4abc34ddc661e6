"""An adapter that was opened and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from max_zimage.checkpoint.adapters.changes import Change
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.errors import AdapterError

Stamp = tuple[Path, int, int]
"""A file, its size in bytes, and when it was written, in nanoseconds."""


def stamp(file: Path) -> Stamp:
    """What tells whether a file is still the same.

    Raises:
        AdapterError: If it is not there.
    """
    try:
        found = file.stat()
    except OSError as error:
        raise AdapterError(f"{file} cannot be read: {error.strerror}") from error
    return file, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Adapter:
    """A LoRA, or one of its relatives, that fits a model: which modules it changes and how, without its numbers.

    Attributes:
        path: The file or PEFT folder that was asked for.
        name: Its stem.
        digest: SHA-256 of the file's content, in hexadecimal; of a PEFT folder's configuration and then its weights.
        modules: Component -> module -> the changes of its weight and bias.
        specs: The model's that it fits.
        stamps: Of its files, when it was opened.
        notes: What is odd about it, though nothing is wrong.
    """

    path: Path
    name: str
    digest: str
    modules: Mapping[str, Mapping[str, tuple[Change, ...]]] = field(compare=False, repr=False)
    specs: ModelSpecs = field(compare=False, repr=False)
    stamps: tuple[Stamp, ...] = field(compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def check_unchanged(self) -> None:
        """Look whether its files are those that were opened.

        Raises:
            AdapterError: If one is gone, or was written since.
        """
        for before in self.stamps:
            if stamp(before[0]) != before:
                raise AdapterError(f"{before[0]} was changed after it was opened; open it again")
