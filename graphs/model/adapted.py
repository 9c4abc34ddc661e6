"""The transformer with low-rank parts beside its matrices, of each branch row its own: adapters that share a batch.

    y = x Wᵀ + (x downᵀ) upᵀ        the parts are those of the row's picture; one without any has x Wᵀ, to the bit

Parts are inputs of the graph and no weights. A set of them holds the adapters of one picture, stacked along the rank,
with scales in `up`. All matrices of the noise refiner and of the main layers have some; what an adapter changes
elsewhere cannot be had this way. On a CPU alone, where matrices are packed for the kernels.

References: LoRA (arXiv 2106.09685); S-LoRA (arXiv 2311.03285) and Punica (arXiv 2310.18547) for adapters by row.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.compilation import as_subgraph
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs import ops
from max_zimage.graphs.adapted_ops import adapted_linear
from max_zimage.graphs.model.attention import rotary_attention
from max_zimage.graphs.model.blocks import Attention, BlockShape, ModulatedBlock, SwiGLU
from max_zimage.graphs.model.transformer import BlockContext, Transformer, TransformerSpec

T = TypeVar("T")


class Factors(NamedTuple, Generic[T]):
    """Low-rank parts of the matrices of all blocks; packed, see `graphs.adapted_ops.adapted_linear`.

    Each is [sets · num_blocks, panels, units, numbers], block b of set s at s · num_blocks + b.

    Attributes:
        qkv_down: From dim inputs to the rank, which is the panels times 32.
        qkv_up: From the rank to 3 dim outputs, the pairs of queries and keys apart as in the weight.
        out_down: From dim inputs.
        out_up: To dim outputs.
        w13_down: From dim inputs.
        w13_up: To gates and ups, 16 of each a panel.
        w2_down: From ffn_dim inputs.
        w2_up: To dim outputs.
    """

    qkv_down: T
    qkv_up: T
    out_down: T
    out_up: T
    w13_down: T
    w13_up: T
    w2_down: T
    w2_up: T


def factor_types(spec: TransformerSpec, dtype: DType, device: DeviceRef) -> Factors[TensorType]:
    """Types of the parts; every matrix has a rank of its own."""

    def types(name: str, inputs: int, outputs: int) -> tuple[TensorType, TensorType]:
        panels, units, numbers = ops.packed_shape(inputs, outputs, dtype)
        down: list[int | str] = ["adapted_blocks", f"{name}_rank_panels", units, numbers]
        up: list[int | str] = ["adapted_blocks", panels, f"{name}_rank_units", numbers]
        return TensorType(dtype, down, device), TensorType(dtype, up, device)

    pairs = (
        types("qkv", spec.dim, 3 * spec.dim),
        types("out", spec.dim, spec.dim),
        types("w13", spec.dim, ops.gated_rows(spec.ffn_dim)),
        types("w2", spec.ffn_dim, spec.dim),
    )
    return Factors(*(each for pair in pairs for each in pair))


class AdaptedTransformer(Transformer):
    """The part of Z-Image that runs once a step, with adapters by row."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__(spec, AdaptedBlock, AdaptedBlock)

    def run(self, tokens: Tensor, blocks: range, around: BlockContext) -> Tensor:
        """Some of the blocks; see `Trunk.run`.

        What they see besides is where the parts of each row's first block stand, int32 [items], at most -num_blocks for
        a row that has none, then `Factors`.
        """
        first, *factors = around.more
        refiners = self.spec.num_refiner_layers
        for index in blocks:
            own = (first + index, *factors)
            if index < refiners:
                block = as_subgraph(self.noise_refiner[index], name="adapted_refiner_block")
                tokens = block(tokens, around.image_rope, None, around.modulation[index], *own)
                continue
            tokens = self.join(tokens, around) if index == refiners else tokens
            block = as_subgraph(self.layers[index - refiners], name="adapted_main_block")
            tokens = block(tokens, around.rope, around.valid_length, around.modulation[index], *own)
        return tokens


class AdaptedBlock(ModulatedBlock):
    """`ModulatedBlock` with low-rank parts; what it takes besides is the parts of each item, then `Factors`."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape, AdaptedAttention)
        self.feed_forward = AdaptedSwiGLU(shape.dim, shape.ffn_dim)

    def fed(self, x: Tensor, *more: Any) -> Tensor:
        """The feed-forward layer with its parts."""
        layer: Module[..., Tensor] = self.feed_forward
        return layer(x, *more)


class AdaptedAttention(Attention):
    """`Attention` with low-rank parts."""

    def forward(self, x: Tensor, rope: Tensor, valid_length: Tensor | None, *more: Tensor) -> Tensor:
        """[items, length, dim] -> the same; `more` is the parts of each item, int32 [items], then `Factors`."""
        (items, length, dim), which, own = x.shape, more[0], Factors(*more[1:])
        width = int(dim)
        qkv = adapted_linear(x, self.qkv.weight, own.qkv_down, own.qkv_up, which, 3 * width)
        mixed = rotary_attention(
            F.reshape(qkv, [items, length, 3 * self.num_heads, self.head_dim]),
            self.q_norm,
            self.k_norm,
            rope,
            heads=self.num_heads,
            valid_length=valid_length,
            backend=self.backend,
        )
        joined = F.reshape(mixed, [items, length, dim])
        return adapted_linear(joined, self.out.weight, own.out_down, own.out_up, which, width)


class AdaptedSwiGLU(SwiGLU):
    """`SwiGLU` with low-rank parts."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim)
        self.hidden_dim = hidden_dim

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """[items, length, dim] -> the same; `more` as in `AdaptedAttention.forward`."""
        width, which, own = int(x.shape[2]), more[0], Factors(*more[1:])
        gated = adapted_linear(x, self.w13.weight, own.w13_down, own.w13_up, which, self.hidden_dim, gated=True)
        return adapted_linear(gated, self.w2.weight, own.w2_down, own.w2_up, which, width)
