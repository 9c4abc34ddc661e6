"""The transformer with low-rank parts beside its matrices, chosen for each branch row: adapters that share a batch.

    y = x Wᵀ + (x downᵀ) upᵀ        of the row's slot; a slot of zeros is the transformer itself

A slot holds the adapters of one request, stacked along the rank, with scales in `up`. All matrices of the noise refiner
and of the main layers have such parts; what an adapter changes elsewhere cannot be had this way. On a CPU alone, where
matrices are packed for the kernels.

References: LoRA (arXiv 2106.09685); S-LoRA and Punica for adapters by row.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.compilation import as_subgraph
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs import ops
from max_zimage.graphs.chosen_ops import chosen_linear
from max_zimage.graphs.model.attention import rotary_attention
from max_zimage.graphs.model.blocks import Attention, BlockShape, ModulatedBlock, SwiGLU
from max_zimage.graphs.model.transformer import BlockContext, Transformer, TransformerSpec

T = TypeVar("T")
_HALF = ops.PANEL // 2


class Factors(NamedTuple, Generic[T]):
    """Low-rank parts of one block's matrices, or of all blocks'; packed, see `graphs.ops.packed_shape`.

    Those of all blocks are [num_blocks, slots, panels, units, numbers]; a block's lack the first axis.

    Attributes:
        qkv_down: From dim inputs to the rank, which is the panels times 32.
        qkv_up: From the rank to 3 dim outputs, with pairs of queries and keys apart.
        out_down: From dim inputs.
        out_up: To dim outputs.
        w13_down: From dim inputs.
        w13_up: To gates and ups, packed as the layer's own weight is: 16 gates and their 16 ups a panel.
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
    """Types of the parts of all blocks; every matrix has a rank of its own."""

    def types(name: str, inputs: int, outputs: int) -> tuple[TensorType, TensorType]:
        per_unit = 4 // dtype.size_in_bytes
        _, units, numbers = ops.packed_shape(inputs, outputs, dtype)
        panels = -(-outputs // ops.PANEL)
        down = [spec.num_blocks, "slots", f"{name}_panels", units, numbers]
        up = [spec.num_blocks, "slots", panels, f"{name}_units", ops.PANEL * per_unit]
        return TensorType(dtype, down, device), TensorType(dtype, up, device)

    gated = 2 * _HALF * -(-spec.ffn_dim // _HALF)
    pairs = (
        types("qkv", spec.dim, 3 * spec.dim),
        types("out", spec.dim, spec.dim),
        types("w13", spec.dim, gated),
        types("w2", spec.ffn_dim, spec.dim),
    )
    return Factors(*(each for pair in pairs for each in pair))


class AdaptedAttention(Attention):
    """`Attention` with low-rank parts."""

    def forward(self, x: Tensor, rope: Tensor, valid_length: Tensor | None, *factors: Tensor) -> Tensor:
        """[items, length, dim] -> the same; `factors` are the slot of each item, then those of qkv and out."""
        items, length, dim = x.shape
        which, qkv_down, qkv_up, out_down, out_up = factors
        fused = self.qkv(x) + low_rank(x, qkv_down, qkv_up, which, 3 * int(dim))
        mixed = rotary_attention(
            F.reshape(fused, [items, length, 3 * self.num_heads, self.head_dim]),
            self.q_norm,
            self.k_norm,
            rope,
            heads=self.num_heads,
            valid_length=valid_length,
            backend=self.backend,
        )
        joined = F.reshape(mixed, [items, length, dim])
        return self.out(joined) + low_rank(joined, out_down, out_up, which, int(dim))


class AdaptedSwiGLU(SwiGLU):
    """`SwiGLU` with low-rank parts; gates and ups leave the product as they stand in its panels."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim)
        self.hidden_dim = hidden_dim

    def forward(self, x: Tensor, *factors: Tensor) -> Tensor:
        """[items, length, dim] -> the same; `factors` are the slot of each item, then those of w13 and w2."""
        items, length, dim = x.shape
        which, w13_down, w13_up, w2_down, w2_up = factors
        panels = -(-self.hidden_dim // _HALF)
        both = ops.linear(x, self.w13.weight, 2 * _HALF * panels)
        both = both + low_rank(x, w13_down, w13_up, which, 2 * _HALF * panels)
        parts = F.reshape(both.cast(DType.float32), [items, length, panels, 2, _HALF])
        gate, up = parts[:, :, :, 0], parts[:, :, :, 1]
        hidden = F.reshape(F.silu(gate) * up, [items, length, panels * _HALF])[:, :, : self.hidden_dim].cast(x.dtype)
        return self.w2(hidden) + low_rank(hidden, w2_down, w2_up, which, int(dim))


class AdaptedBlock(ModulatedBlock):
    """`ModulatedBlock` with low-rank parts."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape, AdaptedAttention)
        self.feed_forward = AdaptedSwiGLU(shape.dim, shape.ffn_dim)

    def mixed(self, x: Tensor, rope: Tensor, extent: Tensor | None, *more: Any) -> Tensor:
        """Attention with its parts; `more` is the slot of each item, then `Factors` of the block."""
        return self.attention(x, rope, extent, *more[:5])

    def fed(self, x: Tensor, *more: Any) -> Tensor:
        """The feed-forward layer with its parts."""
        return self.feed_forward(x, more[0], *more[5:])


class AdaptedTransformer(Transformer):
    """The part of Z-Image that runs once a step, with adapters by row."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__(spec, AdaptedBlock, AdaptedBlock)

    def run(self, tokens: Tensor, blocks: range, around: BlockContext) -> Tensor:
        """Some of the blocks; see `Trunk.run`. What they see besides is the slot of each item, then `Factors`."""
        which, *factors = around.more
        refiners = self.spec.num_refiner_layers
        for index in blocks:
            own = (which, *(each[index] for each in factors))
            tokens = self.join(tokens, around) if index == refiners else tokens
            if index < refiners:
                block = as_subgraph(self.noise_refiner[index], name="adapted_refiner_block")
                tokens = block(tokens, around.image_rope, None, around.modulation[index], *own)
            else:
                block = as_subgraph(self.layers[index - refiners], name="adapted_main_block")
                tokens = block(tokens, around.rope, around.valid_length, around.modulation[index], *own)
        return tokens


def low_rank(x: Tensor, down: Tensor, up: Tensor, which: Tensor, outputs: int) -> Tensor:
    """(x downᵀ) upᵀ of each item's slot: [items, length, inputs] -> [items, length, outputs]."""
    return chosen_linear(chosen_linear(x, down, which, down.shape[1] * ops.PANEL), up, which, outputs)
