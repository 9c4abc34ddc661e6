"""What happens to the tensors of a checkpoint between the files and the model, in float32 and under the files' names.

A transform takes all tensors of a component and returns all of them: some replaced by others that are computed from
them, some left out because they are used up. It decides from names, shapes and dtypes alone; numbers are read when the
model is loaded. A tensor that it has nothing to do with it must return as it is, so that what stands in a file in the
model's dtype is still used where it stands.

    files -> tensors -> transforms -> names and shapes checked -> rounded once -> stacked -> reordered -> packed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, Source, Tensor

Transform = Callable[[Source], Source]

ALWAYS: tuple[Transform, ...] = ()
"""Applied to every checkpoint before those that a caller gives: each looks whether it finds what it is for."""


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

    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        """See `Tensor`."""
        return self.change(self.base.rows(begin, end, files), begin, files)


def computed(base: Tensor, change: Callable[[FloatArray, int, Files], FloatArray]) -> Computed:
    """A tensor in place of another one: same name, shape and dtype, other numbers."""
    return Computed(base.file, base.name, base.dtype, base.shape, base, change)


def transformed(source: Source, transforms: Sequence[Transform]) -> Source:
    """Apply transforms, those that are always applied first.

    Raises:
        CheckpointError: As a transform says.
    """
    for transform in (*ALWAYS, *transforms):
        source = transform(source)
    return source
