"""The ways to compute attention, and which of them a graph is built with.

    max_zimage: the project's own kernel for a CPU: norms, RoPE and attention in one pass
    max:        MAX's flash attention, of a CPU or a GPU, behind norms and RoPE
    plain:      scores, softmax and weighted sums as a textbook has them, in float32: [heads, length, length] in memory

A layer takes the choice when it is made, as it does its dtype and device; `attending_with` says it. Layers of the text
encoder and the transformer do; the one attention of the autoencoder, with a single head as wide as its channels, is
chosen by the device alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

from max.driver import Device
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import DeviceRef

from max_zimage.graphs import ops
from max_zimage.graphs.kernel_library import uses_cpu_kernels

Backend = Literal["max_zimage", "max", "plain"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_chosen: ContextVar[Backend | None] = ContextVar("_chosen", default=None)


@contextmanager
def attending_with(backend: Backend | None) -> Iterator[None]:
    """Have attention that is made inside be computed in this way; None for what dtype and device choose."""
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen_backend() -> Backend | None:
    """What `attending_with` says here."""
    return _chosen.get()


def available(dtype: DType, device: Device | DeviceRef, head_dims: Iterable[int]) -> tuple[Backend, ...]:
    """The ways there are, the one that graphs take unless told otherwise first.

    Args:
        dtype: That a model runs in.
        device: Where.
        head_dims: Widths of the heads of its layers.
    """
    own = uses_cpu_kernels(dtype, device) and all(map(ops.supports_head_dim, head_dims))
    return BACKENDS if own else BACKENDS[1:]


def plain_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(query keyᵀ · scale + mask) value, on any device.

    Args:
        query: [batch, length, heads, head_dim].
        key: [batch, length, key_value_heads, head_dim]; fewer heads than the query's are shared by groups.
        value: Like `key`.
        scale: Factor of the scores.
        mask: float32 [batch, 1, length, length], added to the scores; None for none.

    Returns:
        Like `query`, computed in float32.
    """
    heads = int(query.shape[2])
    turned = F.permute(query.cast(DType.float32), [0, 2, 1, 3])
    keys, values = (_per_head(each.cast(DType.float32), heads) for each in (key, value))
    scores = turned @ F.permute(keys, [0, 1, 3, 2]) * scale
    if mask is not None:
        scores = scores + mask
    # Written out: MAX 26.7 takes its softmax between two products for its flash attention, which is another way, and
    # there it leaves out a mask that has to be broadcast over the batch or over queries.
    weights = F.exp(scores - F.max(scores, axis=-1))
    weights = weights / F.sum(weights, axis=-1)
    return F.permute(weights @ values, [0, 2, 1, 3]).cast(query.dtype)


def _per_head(x: Tensor, heads: int) -> Tensor:
    """[batch, length, key_value_heads, head_dim] -> [batch, heads, length, head_dim], each head once a group."""
    batch, length, shared, head_dim = x.shape
    turned = F.permute(x, [0, 2, 1, 3])
    groups = heads // int(shared)
    if groups == 1:
        return turned
    repeated = F.broadcast_to(F.unsqueeze(turned, 2), [batch, shared, groups, length, head_dim])
    return F.reshape(repeated, [batch, heads, length, head_dim])
