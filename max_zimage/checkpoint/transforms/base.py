"""What transforms are made of: tensors whose numbers are computed from those of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, Source, Tensor

Transform = Callable[[Source], Source]
"""Takes all tensors of a component and returns all of them; CheckpointError if they make no sense to it."""


@dataclass(frozen=True)
class Computed(Tensor):
    """A tensor whose numbers are made from those of another one, a few rows at a time.

    Attributes:
        base: The other one; in the simplest case the one that this stands in place of.
        change: Takes float32 rows of the base, the number of the first one, and the files; returns as many rows of this
            tensor. It may write to the rows that it takes.
    """

    base: Tensor
    change: Callable[[FloatArray, int, Files], FloatArray]

    @property
    @override
    def storage(self) -> str:
        return self.base.storage

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        return self.change(self.base.rows(begin, end, files), begin, files)


@dataclass(frozen=True)
class Decoded(Tensor):
    """A tensor that stands in the files as codes, with scales or tables beside it; its dtype is F32.

    Two that are decoded alike from the same tensors are equal, so that `bind` sees that nothing has changed.

    Attributes:
        stored_as: A word for the format.
    """

    stored_as: str
    in_threads: ClassVar[bool] = True

    @property
    @override
    def storage(self) -> str:
        return self.stored_as


def computed(base: Tensor, change: Callable[[FloatArray, int, Files], FloatArray]) -> Computed:
    """A tensor in place of another one: same name, shape and dtype, other numbers."""
    return Computed(base.file, base.name, base.dtype, base.shape, base, change)
