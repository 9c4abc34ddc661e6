"""Rotary tables that change from one evaluation to the next, made on the device from small tables of each axis.

    ids -> a row of the frame table, one of the row table, one of the column table -> the table of every token

A table of all tokens is some hundred times larger than those of the axes, and a request has one for each evaluation:
the small ones lie on the device before the first step, and each evaluation makes the large one anew.

Reference: diffusers models/transformers/transformer_z_image.py, RopeEmbedder.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import CAPTION_PADDED, IMAGE_PADDED, ITEMS
from max_zimage.graphs.model.transformer import TransformerSpec

T = TypeVar("T")


class PositionInputs(NamedTuple, Generic[T]):
    """What `Positions` takes.

    Attributes:
        frames: float32 [frame_positions, axes_dims[0] / 2, 2], cosine and sine of every pair at every position.
        rows: float32 [row_positions, axes_dims[1] / 2, 2].
        columns: float32 [column_positions, axes_dims[2] / 2, 2].
        image_ids: int32 [items, image_padded, 3], the position of every image token on each axis.
        caption_ids: int32 [items, caption_padded, 3], the same of its caption's.
    """

    frames: T
    rows: T
    columns: T
    image_ids: T
    caption_ids: T


class Positions(Module[..., tuple[Tensor, Tensor]]):
    """The rotary tables of one evaluation."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Look positions up.

        Args:
            *inputs: `PositionInputs`.

        Returns:
            `image_rope` and `rope` of `graphs.step.inputs.PredictInputs`.
        """
        given = PositionInputs(*inputs)
        axes = (given.frames, given.rows, given.columns)
        image, caption = (
            F.concat([F.gather(table, ids[:, :, axis], axis=0) for axis, table in enumerate(axes)], axis=2)
            for ids in (given.image_ids, given.caption_ids)
        )
        return image, F.concat([image, caption], axis=1)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        tables = (
            TensorType(DType.float32, [f"{name}_positions", dim // 2, 2], device)
            for name, dim in zip(("frame", "row", "column"), self.spec.axes_dims, strict=True)
        )
        places = (TensorType(DType.int32, [ITEMS, length, 3], device) for length in (IMAGE_PADDED, CAPTION_PADDED))
        return PositionInputs(*tables, *places)
