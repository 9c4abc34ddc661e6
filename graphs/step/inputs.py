"""What one evaluation of the model takes, by name: the only place that knows the order of a step graph's arguments.

The same tuples hold types while a graph is declared, tensors while it is traced, and buffers when it is called.
Whatever may change from one evaluation to the next is an argument here, rotary tables and modulation included.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from max.dtype import DType
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import (
    BATCH,
    CAPTION_PADDED,
    IMAGE_PADDED,
    IMAGE_TOKENS,
    ITEMS,
    OFFSETS,
    OTHERS,
    SLOTS,
    TOKENS,
    VARIANTS,
)
from max_zimage.graphs.model.transformer import TransformerSpec

T = TypeVar("T")


class PredictInputs(NamedTuple, Generic[T]):
    """What the transformer takes.

    Attributes:
        latents: float32 [batch, image_tokens, patch_dim].
        caption_tokens: [items, caption_padded, dim] in the model's dtype.
        image_rope: float32 [items, image_padded, head_dim/2, 2].
        rope: float32 [items, tokens, head_dim/2, 2], the same with the captions' positions behind.
        valid_length: uint32 [items].
        offsets: uint32 [sequences + 1], see `graphs.model.transformer.Transformer.forward`.
        latent_rows: int32 [items], the picture that each branch row works on.
        variants: int32 [items], the variant of the modulation that each branch row takes.
        modulation: float32 [num_blocks, 4, variants, dim].
        final_scale: float32 [dim].
    """

    latents: T
    caption_tokens: T
    image_rope: T
    rope: T
    valid_length: T
    offsets: T
    latent_rows: T
    variants: T
    modulation: T
    final_scale: T


class NagInputs(NamedTuple, Generic[T]):
    """How far normalized attention guidance goes; see `graphs.model.normalized_attention`.

    Attributes:
        scale: float32 [1].
        tau: float32 [1].
        alpha: float32 [1].
    """

    scale: T
    tau: T
    alpha: T


class BranchInputs(NamedTuple, Generic[T]):
    """Which branch rows guidance compares.

    Attributes:
        positive_rows: int32 [batch], the branch row that carries each picture's prompt.
        negative_rows: int32 [batch], that of its negative prompt; equal to `positive_rows` without guidance.
        other_rows: int32 [others, batch], those of further branches.
    """

    positive_rows: T
    negative_rows: T
    other_rows: T


class GuideInputs(NamedTuple, Generic[T]):
    """How far guidance goes; see `graphs.guiders.linear`.

    Attributes:
        guidance_scale: float32 [1].
        other_scales: float32 [others].
        cfg_normalization: float32 [1]: limit of the prediction's norm as a share of the positive branch's; 0 for none.
    """

    guidance_scale: T
    other_scales: T
    cfg_normalization: T


class AdvanceInputs(NamedTuple, Generic[T]):
    """What a sampler remembers, and its coefficients; see `graphs.step.advance`.

    Attributes:
        history: float32 [slots, batch, image_tokens, patch_dim].
        update: float32 [2], what of the prediction is taken away from the latents, and what of the latents is added.
        past: float32 [slots], what of each slot is added to the latents.
        pushed: float32 [slots, 2], what each slot takes from the latents and from the prediction.
        mixed: float32 [slots, slots], what each slot takes from all slots.
    """

    history: T
    update: T
    past: T
    pushed: T
    mixed: T


def predict_types(spec: TransformerSpec, dtype: DType, device: DeviceRef) -> PredictInputs[TensorType]:
    """Types of `PredictInputs`."""
    return PredictInputs(
        latents=TensorType(DType.float32, [BATCH, IMAGE_TOKENS, spec.patch_dim], device),
        caption_tokens=TensorType(dtype, [ITEMS, CAPTION_PADDED, spec.dim], device),
        image_rope=TensorType(DType.float32, [ITEMS, IMAGE_PADDED, spec.head_dim // 2, 2], device),
        rope=TensorType(DType.float32, [ITEMS, TOKENS, spec.head_dim // 2, 2], device),
        valid_length=TensorType(DType.uint32, [ITEMS], device),
        offsets=TensorType(DType.uint32, [OFFSETS], device),
        latent_rows=TensorType(DType.int32, [ITEMS], device),
        variants=TensorType(DType.int32, [ITEMS], device),
        modulation=TensorType(DType.float32, [spec.num_blocks, 4, VARIANTS, spec.dim], device),
        final_scale=TensorType(DType.float32, [spec.dim], device),
    )


def nag_types(device: DeviceRef) -> NagInputs[TensorType]:
    """Types of `NagInputs`."""
    number = TensorType(DType.float32, [1], device)
    return NagInputs(number, number, number)


def branch_types(device: DeviceRef) -> BranchInputs[TensorType]:
    """Types of `BranchInputs`."""
    rows = TensorType(DType.int32, [BATCH], device)
    return BranchInputs(rows, rows, TensorType(DType.int32, [OTHERS, BATCH], device))


def guide_types(device: DeviceRef) -> GuideInputs[TensorType]:
    """Types of `GuideInputs`."""
    number = TensorType(DType.float32, [1], device)
    return GuideInputs(number, TensorType(DType.float32, [OTHERS], device), number)


def advance_types(patch_dim: int, device: DeviceRef) -> AdvanceInputs[TensorType]:
    """Types of `AdvanceInputs`."""
    return AdvanceInputs(
        history=TensorType(DType.float32, [SLOTS, BATCH, IMAGE_TOKENS, patch_dim], device),
        update=TensorType(DType.float32, [2], device),
        past=TensorType(DType.float32, [SLOTS], device),
        pushed=TensorType(DType.float32, [SLOTS, 2], device),
        mixed=TensorType(DType.float32, [SLOTS, SLOTS], device),
    )
