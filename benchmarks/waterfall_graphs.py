"""The transformer's step, less optimised than the engine's: what `benchmarks.waterfall` switches on one by one.

    PlainStep       attention and feed-forward layers of a kind; modulation and captions computed in every step
    TabledStep      modulation from a table; captions computed in every step
    VelocityStep    both computed before the loop
    Guidance        what a step does with the velocity before the Euler update, as a graph of its own

Attention and feed-forward layers come in kinds, each with one more switch on than the one before; the last kind is the
engine's own. Weights in the order of diffusers have the names of diffusers, so that every kind finds its own in one
mapping. Everything else is the engine's. Subgraphs of graphs that compile as one module may not have the same name:
main layers share one under the step's own name, the few refiner blocks are traced in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.compilation import as_subgraph
from max.experimental.nn import Linear, Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.realization_context import GraphRealizationContext, subgraph_context
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, Dim, TensorType

from max_zimage.graphs.dims import BATCH, CAPTION_PADDED, IMAGE_TOKENS, ITEMS
from max_zimage.graphs.guiders.linear import limit_norm
from max_zimage.graphs.model.blocks import Attention, BlockShape, SwiGLU
from max_zimage.graphs.model.conditioning import CaptionConditioning, ModulationTable
from max_zimage.graphs.model.rope import rotate
from max_zimage.graphs.model.transformer import BlockContext, Transformer, TransformerSpec
from max_zimage.graphs.step.inputs import predict_types
from max_zimage.graphs.step.predict import modulation_of

_QK_NORM_EPS = 1e-5
_MASKED = -1e30


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How attention and the feed-forward layer of every block are computed."""

    attention: Callable[[BlockShape], Module[..., Tensor]]
    feed_forward: Callable[[int, int], Module[..., Tensor]]


class ScoresAttention(Attention):
    """The engine's products and rotation, and attention as product, mask, softmax, product."""

    def forward(self, x: Tensor, rope: Tensor, valid_length: Tensor | None) -> Tensor:
        """[items, length, dim] -> the same."""
        items, length, dim = x.shape
        qkv = F.reshape(self.qkv(x), [items, length, 3 * self.num_heads, self.head_dim])
        query, key, value = F.split(qkv, [self.num_heads] * 3, axis=2)
        query, key = rotate(self.q_norm(query), rope), rotate(self.k_norm(key), rope)
        return self.out(F.reshape(scores_attention(query, key, value, valid_length), [items, length, dim]))


class PairsAttention(Module[..., Tensor]):
    """As `ScoresAttention`, with the adjacent elements of a head rotated as complex numbers."""

    def __init__(self, shape: BlockShape) -> None:
        self.num_heads, self.head_dim = shape.num_heads, shape.head_dim
        self.to_qkv = Linear(shape.dim, 3 * shape.dim, bias=False)
        self.out = Linear(shape.dim, shape.dim, bias=False)
        self.norm_q = RMSNorm(shape.head_dim, eps=_QK_NORM_EPS)
        self.norm_k = RMSNorm(shape.head_dim, eps=_QK_NORM_EPS)

    def forward(self, x: Tensor, rope: Tensor, valid_length: Tensor | None) -> Tensor:
        """[items, length, dim] -> the same."""
        items, length, dim = x.shape
        qkv = F.reshape(self.to_qkv(x), [items, length, 3 * self.num_heads, self.head_dim])
        query, key, value = F.split(qkv, [self.num_heads] * 3, axis=2)
        query, key = rotate_pairs(self.norm_q(query), rope), rotate_pairs(self.norm_k(key), rope)
        return self.out(F.reshape(scores_attention(query, key, value, valid_length), [items, length, dim]))


class SeparateAttention(Module[..., Tensor]):
    """As `PairsAttention`, with a matrix each for queries, keys and values."""

    def __init__(self, shape: BlockShape) -> None:
        self.num_heads, self.head_dim = shape.num_heads, shape.head_dim
        self.to_q = Linear(shape.dim, shape.dim, bias=False)
        self.to_k = Linear(shape.dim, shape.dim, bias=False)
        self.to_v = Linear(shape.dim, shape.dim, bias=False)
        self.out = Linear(shape.dim, shape.dim, bias=False)
        self.norm_q = RMSNorm(shape.head_dim, eps=_QK_NORM_EPS)
        self.norm_k = RMSNorm(shape.head_dim, eps=_QK_NORM_EPS)

    def forward(self, x: Tensor, rope: Tensor, valid_length: Tensor | None) -> Tensor:
        """[items, length, dim] -> the same."""
        items, length, dim = x.shape
        heads: list[Dim | int] = [items, length, self.num_heads, self.head_dim]
        query, key, value = (F.reshape(layer(x), heads) for layer in (self.to_q, self.to_k, self.to_v))
        query, key = rotate_pairs(self.norm_q(query), rope), rotate_pairs(self.norm_k(key), rope)
        return self.out(F.reshape(scores_attention(query, key, value, valid_length), [items, length, dim]))


class SeparateSwiGLU(Module[[Tensor], Tensor]):
    """w2(silu(w1 x) · w3 x), three matrix products."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        self.w1 = Linear(dim, hidden_dim, bias=False)
        self.w3 = Linear(dim, hidden_dim, bias=False)
        self.w2 = Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


SEPARATE = Kind(attention=SeparateAttention, feed_forward=SeparateSwiGLU)
FUSED = Kind(attention=PairsAttention, feed_forward=SwiGLU)
HALVES = Kind(attention=ScoresAttention, feed_forward=SwiGLU)
ENGINE = Kind(attention=Attention, feed_forward=SwiGLU)


def rotate_pairs(x: Tensor, table: Tensor) -> Tensor:
    """Rotate elements 2i and 2i+1 of the last axis; arguments and result as of `graphs.model.rope.rotate`."""
    items, length, heads, head_dim = x.shape
    pairs = F.reshape(x.cast(DType.float32), [items, length, heads, int(head_dim) // 2, 2])
    real, imaginary = pairs[:, :, :, :, 0], pairs[:, :, :, :, 1]
    cosine, sine = (F.unsqueeze(table[:, :, :, i], 2) for i in (0, 1))
    turned = F.stack([real * cosine - imaginary * sine, imaginary * cosine + real * sine], axis=-1)
    return F.reshape(turned, x.shape).cast(x.dtype)


def scores_attention(query: Tensor, key: Tensor, value: Tensor, valid_length: Tensor | None) -> Tensor:
    """softmax(query keyᵀ / sqrt(head_dim) + mask) value; [items, length, heads, head_dim] thrice -> the same."""
    items, length, _, head_dim = query.shape
    scores = F.permute(query, [0, 2, 1, 3]) @ F.permute(key, [0, 2, 3, 1]) * int(head_dim) ** -0.5
    if valid_length is not None:
        position = F.range(0, length, 1, out_dim=length, dtype=DType.int32, device=query.device)
        beyond = F.unsqueeze(position, 0) >= F.unsqueeze(valid_length.cast(DType.int32), 1)
        scores = scores + F.reshape(beyond.cast(DType.float32) * _MASKED, [items, 1, 1, length])
    return F.permute(F.softmax(scores) @ F.permute(value, [0, 2, 1, 3]), [0, 2, 1, 3])


class VelocityStep(Module[..., Tensor]):
    """Latents to velocity; everything else arrives computed."""

    def __init__(self, spec: TransformerSpec, kind: Kind, name: str) -> None:
        self.spec, self.block_name = spec, f"{name}_block"
        self.transformer = Transformer(spec)
        _refit([*self.transformer.noise_refiner, *self.transformer.layers], spec, kind)

    def forward(
        self, latents: Tensor, captions: Tensor, image_rope: Tensor, rope: Tensor, valid: Tensor, *rest: Tensor
    ) -> Tensor:
        """See `PredictInputs`; `rest`: `offsets`, `latent_rows`, `variants`, `modulation` and `final_scale`."""
        offsets, latent_rows, variants, table, final_scale = rest
        modulation = modulation_of(table, variants)
        transformer, refiners = self.transformer, self.spec.num_refiner_layers
        around = BlockContext(captions, image_rope, rope, valid, offsets, modulation)
        tokens = transformer.embed(F.gather(latents, latent_rows, axis=0).cast(captions.dtype), image_rope.shape[1])
        with _in_place():
            tokens = transformer.run(tokens, range(refiners), around)
        tokens = transformer.join(tokens, around)
        for index, layer in enumerate(transformer.layers, refiners):
            tokens = as_subgraph(layer, name=self.block_name)(tokens, rope, valid, modulation[index])
        return transformer.project(tokens[:, : latents.shape[1]], final_scale)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        captions = (TensorType(dtype, [ITEMS, CAPTION_PADDED, self.spec.dim], device),)
        return (_latents(self.spec, device), *captions, *_places(self.spec, device), *_tabled(self.spec, device))


class TabledStep(Module[..., Tensor]):
    """Latents and text features to velocity."""

    def __init__(self, spec: TransformerSpec, kind: Kind, name: str) -> None:
        self.spec = spec
        self.conditioning = CaptionConditioning(spec)
        _refit(self.conditioning.context_refiner, spec, kind)
        self.step = VelocityStep(spec, kind, name)

    def forward(self, latents: Tensor, *rest: Tensor) -> Tensor:
        """`rest`: the arguments of `CaptionConditioning`, then those of `VelocityStep` behind the captions."""
        with _in_place():
            captions = self.conditioning(*rest[:6])
        return self.step(latents, captions, *rest[6:])

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        captions = self.conditioning.input_types(dtype, device)
        return (_latents(self.spec, device), *captions, *_places(self.spec, device), *_tabled(self.spec, device))


class PlainStep(Module[..., Tensor]):
    """Latents, text features and the timestep to velocity: the whole transformer, as diffusers calls it."""

    def __init__(self, spec: TransformerSpec, kind: Kind, name: str) -> None:
        self.spec = spec
        self.table = ModulationTable(spec)
        self.tabled = TabledStep(spec, kind, name)

    def forward(self, latents: Tensor, *rest: Tensor) -> Tensor:
        """`rest`: the arguments of `TabledStep`, with the timestep, float32 [1], in place of the last two."""
        kept = F.constant(np.ones((1, self.spec.num_blocks), np.float32), DType.float32, device=latents.device)
        modulation, final_scale = self.table(rest[-1], kept)
        return self.tabled(latents, *rest[:-1], modulation[0], final_scale[0])

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        captions = self.tabled.conditioning.input_types(dtype, device)
        timestep = TensorType(DType.float32, [1], device)
        return (_latents(self.spec, device), *captions, *_places(self.spec, device), timestep)


class Guidance(Module[..., Tensor]):
    """Velocity of both branches to the prediction; see `graphs.guiders.linear` for the arguments."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec

    def forward(self, velocity: Tensor, positive_rows: Tensor, negative_rows: Tensor, *rest: Tensor) -> Tensor:
        """`rest` is `guidance_scale` and `cfg_normalization`."""
        positive, negative = (F.gather(velocity, rows, axis=0) for rows in (positive_rows, negative_rows))
        guidance_scale, cfg_normalization = rest
        return limit_norm(positive + guidance_scale * (positive - negative), positive, cfg_normalization)

    def input_types(self, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        velocity = TensorType(DType.float32, [ITEMS, IMAGE_TOKENS, self.spec.patch_dim], device)
        rows, scalar = TensorType(DType.int32, [BATCH], device), TensorType(DType.float32, [1], device)
        return (velocity, rows, rows, scalar, scalar)


@contextmanager
def _in_place() -> Iterator[None]:
    """Trace what `as_subgraph` wraps in place."""
    context = subgraph_context()
    if not isinstance(context, GraphRealizationContext):
        yield
        return
    shared, context.subgraph_cache = context.subgraph_cache, None
    try:
        yield
    finally:
        context.subgraph_cache = shared


def _refit(blocks: Iterable[Any], spec: TransformerSpec, kind: Kind) -> None:
    """Give blocks the attention and feed-forward layers of a kind, which need not be of the class they have."""
    for block in blocks:
        block.attention = kind.attention(spec)
        block.feed_forward = kind.feed_forward(spec.dim, spec.ffn_dim)


def _latents(spec: TransformerSpec, device: DeviceRef) -> TensorType:
    return TensorType(DType.float32, [BATCH, IMAGE_TOKENS, spec.patch_dim], device)


def _places(spec: TransformerSpec, device: DeviceRef) -> tuple[TensorType, ...]:
    """Where tokens stand: what `PredictInputs` has from the image's rotary table to the variants."""
    return predict_types(spec, DType.float32, device)[2:8]


def _tabled(spec: TransformerSpec, device: DeviceRef) -> tuple[TensorType, ...]:
    """One evaluation's rows of the modulation table, and its scale of the final layer."""
    return predict_types(spec, DType.float32, device)[8:]
