"""What happens to the tensors of a checkpoint between the files and the model, in float32 and under the files' names.

A transform takes all tensors of a component and returns all of them: some replaced by others that are computed from
them, some left out because they are used up. It decides from names, shapes and dtypes alone; numbers are read when the
model is loaded. A tensor that it has nothing to do with it must return as it is, so that what stands in a file in the
model's dtype is still used where it stands.

    files -> tensors -> transforms -> names and shapes checked -> rounded once -> stacked -> reordered -> packed
"""

from __future__ import annotations

from collections.abc import Sequence

from max_zimage.checkpoint.tensors import Source
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.checkpoint.transforms.bitsandbytes import bitsandbytes
from max_zimage.checkpoint.transforms.comfy_quant import comfy_quant
from max_zimage.checkpoint.transforms.comfy_scaled import comfy_scaled
from max_zimage.checkpoint.transforms.configured import configured
from max_zimage.checkpoint.transforms.refused import leftover, refused
from max_zimage.checkpoint.transforms.reshaped import reshaped

ALWAYS: tuple[Transform, ...] = (
    refused,
    reshaped,
    comfy_scaled,
    comfy_quant,
    bitsandbytes,
    configured,
    leftover,
)
"""Applied to every checkpoint before those that a caller gives: each looks whether it finds what it is for."""


def transformed(source: Source, transforms: Sequence[Transform]) -> Source:
    """Apply transforms, those that are always applied first.

    Raises:
        CheckpointError: As a transform says.
    """
    for transform in (*ALWAYS, *transforms):
        source = transform(source)
    return source
