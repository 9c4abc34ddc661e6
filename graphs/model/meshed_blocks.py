"""The modulated block of Z-Image over tokens that several devices share.

Each device has some of the tokens of its rows. What stands before attention and behind it runs on its own tokens; in
between, the devices of a group gather each other's keys and values.

Reference: see `graphs.model.blocks`.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor

from max_zimage.graphs import gpu_ops, ops
from max_zimage.graphs.model import mesh_spec
from max_zimage.graphs.model.attention_backends import Backend, plain_attention
from max_zimage.graphs.model.blocks import Attention, FusedBlock, ModulatedBlock, RaggedAttention, times
from max_zimage.graphs.model.rope import rotate


class MeshedBlock(ModulatedBlock):
    """`ModulatedBlock`."""

    attention: Attention | RaggedAttention

    def forward(self, x: Tensor, rope: Tensor, hidden: Tensor | None, modulation: Tensor) -> Tensor:
        """One block; every device has its own.

        Args:
            x: [items, part, dim] in the model's dtype.
            rope: float32 [items, part, head_dim/2, 2].
            hidden: [items, 1, tokens], added to the scores of all keys, float32 on a CPU and in the model's dtype
                elsewhere; None where all are attended.
            modulation: float32 [4, items, dim].

        Returns:
            Like `x`.
        """
        query, *own = F.call_on_mesh(MeshedBlock.heads, x.mesh)(self, x, rope, modulation)
        key, value = map(gathered, own)
        found: Tensor = F.call_on_mesh(MeshedBlock.rest, x.mesh)(self, x, query, key, value, hidden, modulation)
        return found

    def heads(self, x: Tensor, rope: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a device's tokens."""
        return heads_of(self.attention, times(self.attention_norm1(x), modulation[0]), rope)

    def rest(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, modulation: Tensor
    ) -> Tensor:
        """What stands behind them, for a device's tokens."""
        mixed = mixed_with(self.attention, query, key, value, hidden)
        x = x + times(self.attention_norm2(mixed), modulation[1])
        fed = self.feed_forward(times(self.ffn_norm1(x), modulation[2]))
        return x + times(self.ffn_norm2(fed), modulation[3])


class MeshedFusedBlock(FusedBlock):
    """`FusedBlock`."""

    attention: Attention | RaggedAttention

    def forward(  # type: ignore[override]  # tensors of several devices, and another extent
        self, x: Tensor, normed: Tensor, rope: Tensor, hidden: Tensor | None, modulation: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One block; every device has its own.

        Args:
            x: bfloat16 [items, part, dim].
            normed: Like `x`, norm1(x) · scale.
            rope: float32 [items, part, head_dim/2, 2].
            hidden: See `MeshedBlock.forward`.
            modulation: float32 [rows, items, dim], see `FusedBlock.forward`.
            first: int32 on the host, the block's first row.

        Returns:
            Like `x` and `normed`, for the next block.
        """
        query, *own = F.call_on_mesh(heads_of, x.mesh)(self.attention, normed, rope)
        key, value = map(gathered, own)
        behind = F.call_on_mesh(MeshedFusedBlock.rest, x.mesh)
        x, normed = behind(self, x, query, key, value, hidden, modulation, first)
        return x, normed

    def rest(
        self,
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Tensor | None,
        modulation: Tensor,
        first: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What stands behind queries, keys and values, for a device's tokens."""
        mixed = mixed_with(self.attention, query, key, value, hidden)
        x, normed = gpu_ops.gated_norms(mixed, x, modulation, first, gate=1, scale=2, epsilon=self.eps)
        return gpu_ops.gated_norms(self.feed_forward(normed), x, modulation, first, gate=3, scale=4, epsilon=self.eps)


def gathered(x: Tensor) -> Tensor:
    """What the devices of a group have of [items, part, ...], behind each other on each of them."""
    return F.allgather(x, tensor_axis=1, mesh_axis=mesh_spec.TOKENS)


def heads_of(attention: Attention | RaggedAttention, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as attention takes them.

    Args:
        attention: Has the weights.
        x: [items, part, dim].
        rope: float32 [items, part, head_dim/2, 2].

    Returns:
        [items, part, heads, head_dim] each, in x's dtype.
    """
    (items, length, _), heads, head_dim = x.shape, attention.num_heads, attention.head_dim
    if isinstance(attention, RaggedAttention):
        qk = F.reshape(attention.qk(x), [items, length, 2 * heads, head_dim])
        weights = attention.q_norm.weight, attention.k_norm.weight
        query, key = gpu_ops.rotary_heads(qk, *weights, rope, query_heads=heads, epsilon=attention.q_norm.eps)
        return query, key, F.reshape(attention.v(x), [items, length, heads, head_dim])
    qkv = F.reshape(attention.qkv(x), [items, length, 3 * heads, head_dim])
    query, key, value = F.split(qkv, [heads] * 3, axis=2)
    return rotate(attention.q_norm(query), rope), rotate(attention.k_norm(key), rope), value


def mixed_with(
    attention: Attention | RaggedAttention, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None
) -> Tensor:
    """Attention of some queries over all keys, and its last projection: [items, part, dim]."""
    items, length, heads, head_dim = query.shape
    if hidden is not None:
        key, value = (F.rebind(each, [items, hidden.shape[2], heads, head_dim]) for each in (key, value))
    mixed = crossed(query, key, value, hidden, attention.backend)
    return attention.out(F.reshape(mixed, [items, length, heads * head_dim]))


def crossed(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, backend: Backend | None) -> Tensor:
    """softmax(query keyᵀ / √head_dim + hidden) value, with fewer queries than keys.

    Args:
        query: [items, part, heads, head_dim].
        key: [items, tokens, heads, head_dim].
        value: Like `key`.
        hidden: [items, 1, tokens], or None for nothing; see `MeshedBlock.forward`.
        backend: "plain", or whatever else for MAX's kernel.

    Returns:
        Like `query`.
    """
    scale = int(query.shape[3]) ** -0.5
    if backend == "plain":
        return plain_attention(query, key, value, scale, _mask(hidden))
    if hidden is None and not query.device.is_host:
        return ops.flash_attention_gpu(query, key, value, scale, causal=False, valid_length=None)
    nothing = F.constant(0.0, DType.float32, device=query.device)
    mask = F.broadcast_to(nothing if hidden is None else hidden, [query.shape[0], query.shape[1], key.shape[1]])
    if not query.device.is_host:
        return gpu_ops.masked_attention(query, key, value, mask, scale)
    dtype = query.dtype
    query, key, value = (each.cast(DType.float32) for each in (query, key, value))
    return ops.flash_attention_cpu(query, key, value, mask, scale).cast(dtype)


def _mask(hidden: Tensor | None) -> Tensor | None:
    """The same for `plain_attention`."""
    return None if hidden is None else F.unsqueeze(hidden.cast(DType.float32), 1)
