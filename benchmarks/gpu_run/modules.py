"""What is measured beside the project's own: blocks with one thing changed, and a block's pieces alone."""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.tensor import Tensor

from benchmarks.block import Shape
from max_zimage.graphs import gpu_ops
from max_zimage.graphs.model.attention import attention, ragged_mixed
from max_zimage.graphs.model.blocks import Attention, ModulatedBlock, RaggedAttention
from max_zimage.graphs.model.rope import rotate

_EPSILON = 1e-5


class WholeBlock(Module[..., Tensor]):
    """A block whose every token exists."""

    def __init__(self, shape: Shape) -> None:
        self.block = ModulatedBlock(shape)

    def forward(self, x: Tensor, rope: Tensor, modulation: Tensor) -> Tensor:
        """See `ModulatedBlock.forward`."""
        return self.block(x, rope, None, modulation)


class PlainRaggedAttention(Attention):
    """Attention with nothing but the kernel changed: sequences of their own in place of a valid length."""

    def forward(self, x: Tensor, rope: Tensor, offsets: Tensor | None) -> Tensor:
        """[items, length, dim] -> the same."""
        assert offsets is not None
        items, length, dim = x.shape
        heads = self.num_heads
        qkv = F.reshape(self.qkv(x), [items, length, 3 * heads, self.head_dim])
        query, key, value = F.split(qkv, [heads] * 3, axis=2)
        query, key = rotate(self.q_norm(query), rope), rotate(self.k_norm(key), rope)
        mixed = ragged_mixed(query, key, value, offsets)
        return self.out(F.reshape(mixed, [items, length, dim]))


class RaggedBlock(ModulatedBlock):
    """A block with that attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.attention = PlainRaggedAttention(shape)


class HeadsBlock(ModulatedBlock):
    """A block whose queries and keys are normed and turned in one pass, values apart."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.attention = RaggedAttention(shape)


class Padded(Module[..., Tensor]):
    """Attention with a valid length."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, valid_length: Tensor) -> Tensor:
        """[items, length, heads, head_dim] -> the same."""
        return attention(query, key, value, scale=int(query.shape[3]) ** -0.5, valid_length=valid_length)


class Whole(Module[..., Tensor]):
    """Attention without one."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[items, length, heads, head_dim] -> the same."""
        return attention(query, key, value, scale=int(query.shape[3]) ** -0.5)


class Ragged(Module[..., Tensor]):
    """Attention within sequences."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
        """[items, length, heads, head_dim] -> the same."""
        return ragged_mixed(query, key, value, offsets)


class PlainHeads(Module[..., tuple[Tensor, Tensor]]):
    """RMSNorm and RoPE of queries and keys in MAX's operations, from the product of all three."""

    def __init__(self, shape: Shape) -> None:
        self.heads = shape.num_heads
        self.q_norm, self.k_norm = (RMSNorm(shape.head_dim, eps=_EPSILON) for _ in range(2))

    def forward(self, qkv: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """[items, length, 3 heads, head_dim] -> twice [items, length, heads, head_dim]."""
        query, key, _ = F.split(qkv, [self.heads] * 3, axis=2)
        return rotate(self.q_norm(query), rope), rotate(self.k_norm(key), rope)


class OwnHeads(PlainHeads):
    """The same in one pass, from the product of two."""

    def forward(self, qk: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """[items, length, 2 heads, head_dim] -> twice [items, length, heads, head_dim]."""
        weights = self.q_norm.weight, self.k_norm.weight
        return gpu_ops.rotary_heads(qk, *weights, rope, query_heads=self.heads, epsilon=_EPSILON)


class PlainNorms(Module[..., tuple[Tensor, Tensor]]):
    """A branch added and the next one prepared in MAX's operations."""

    def __init__(self, shape: Shape) -> None:
        self.norm2, self.norm1 = (RMSNorm(shape.dim, eps=_EPSILON) for _ in range(2))

    def forward(self, branch: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Twice [items, length, dim], and float32 [2, items, dim] -> twice [items, length, dim]."""
        x = x + (self.norm2(branch).cast(DType.float32) * F.unsqueeze(table[0], 1)).cast(x.dtype)
        return x, (self.norm1(x).cast(DType.float32) * F.unsqueeze(table[1], 1)).cast(x.dtype)


class OwnNorms(Module[..., tuple[Tensor, Tensor]]):
    """The same in one pass; the norms' weights are in the table."""

    def forward(self, branch: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """See `PlainNorms.forward`."""
        return gpu_ops.gated_norms(branch, x, table, gate=0, scale=1, epsilon=_EPSILON)


class PlainGate(Module[[Tensor], Tensor]):
    """SwiGLU's product in MAX's operations."""

    def forward(self, both: Tensor) -> Tensor:
        """[items, length, 2 ffn] -> [items, length, ffn]."""
        half = int(both.shape[2]) // 2
        gate, up = F.split(both, [half] * 2, axis=-1)
        return F.silu(gate) * up


class OwnGate(Module[[Tensor], Tensor]):
    """The same in the project's op."""

    def forward(self, both: Tensor) -> Tensor:
        """[items, length, 2 ffn] -> [items, length, ffn]."""
        return gpu_ops.swiglu(both, int(both.shape[2]) // 2)
