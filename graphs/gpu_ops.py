"""The project's ops for a GPU by their Mojo names, one op per function; `graphs.ops` has those for a CPU.

One of MAX's stands among them, for queries and keys of unequal number.

Which one a graph may use is decided by `graphs.kernel_library.runs_on_nvidia` and by the widths that an op supports,
which stand beside it. Everywhere else plain operations are used, the ops' twins: they define what is right. Tests run
the ops on a CPU, where they take float32 too, in loops of the same arithmetic.
"""

from __future__ import annotations

from max.driver import CPU
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import TensorType
from max.nn.kernels import masked_flash_attention_gpu as _masked_flash_attention_gpu

from max_zimage.graphs.kernel_library import own, results_of

_masked_flash_attention = F.functional(_masked_flash_attention_gpu)


def has_rotary_heads(head_dim: int) -> bool:
    """Whether a head's width suits `rotary_heads`: 8 numbers times a power of two, and a warp holds it."""
    return head_dim in (16, 32, 64, 128, 256)


def rotary_heads(
    heads: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    rope: Tensor,
    *,
    query_heads: int,
    key_heads: int | None = None,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Queries and keys, rope(norm(heads)), in one pass; the twin is in `graphs.model.attention`.

    Args:
        heads: bfloat16 [items, length, query_heads + key_heads or more, head_dim]; what is behind them is not read.
        query_weight: bfloat16 [head_dim], of the queries' RMSNorm.
        key_weight: bfloat16 [head_dim], of the keys' RMSNorm.
        rope: float32 [1 or items, length, head_dim/2, 2], cosine and sine; element i turns with i + head_dim/2.
        query_heads: Of the queries, which come first.
        key_heads: Of the keys; None where all other heads are keys.
        epsilon: Added to the mean squares.

    Returns:
        bfloat16 [items, length, query_heads, head_dim] and [items, length, key_heads, head_dim], rounded once.
    """
    items, length, all_heads, head_dim = heads.shape
    counts = query_heads, int(all_heads) - query_heads if key_heads is None else key_heads
    results = [TensorType(heads.dtype, [items, length, count, head_dim], heads.device) for count in counts]
    parameters = {
        "query_heads": counts[0],
        "key_heads": counts[1],
        "all_heads": int(all_heads),
        "head_dim": int(head_dim),
    }
    query, key = results_of(
        "rotary_heads", [heads, query_weight, key_weight, rope, _host_scalar(epsilon)], results, parameters
    )
    return query, key


def has_gated_norms(width: int) -> bool:
    """Whether a token's width suits `gated_norms` and `scaled_norm`: whole vectors of eight for whole warps."""
    return threads_of(width) > 0


def threads_of(width: int) -> int:
    """Threads that share a token: whole warps, at most 256 and 8 vectors each; 0 where there is no such number."""
    vectors = width // 8
    fitting = [count for count in range(32, 257, 32) if width % 8 == 0 and vectors % count == 0]
    return max((count for count in fitting if vectors // count <= 8), default=0)


def gated_norms(
    branch: Tensor,
    residual: Tensor,
    table: Tensor,
    first: Tensor | None = None,
    *,
    gate: int,
    scale: int,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """A branch added, out = residual + gate · norm(branch), and the next one prepared, norm(out) · scale.

    Args:
        branch: bfloat16 [items, length, width].
        residual: Like `branch`.
        table: float32 [rows, 1 or items, width]; its rows hold the norms' own weights too.
        first: int32 on the host, the row that the others are counted from; None for the first one.
        gate: The row that multiplies the branch.
        scale: The row that multiplies the second norm; behind the table's end its last row does.
        epsilon: Added to the mean squares.

    Returns:
        Both, like `branch`; the second is that of the first before it was rounded.
    """
    width = int(branch.shape[2])
    parameters = {"width": width, "threads": threads_of(width), "gate": gate, "scale": scale}
    inputs = [branch, residual, table, _row(first), _host_scalar(epsilon)]
    added, normed = results_of("gated_norms", inputs, [branch.type, branch.type], parameters)
    return added, normed


def scaled_norm(x: Tensor, table: Tensor, first: Tensor | None = None, *, scale: int, epsilon: float) -> Tensor:
    """RMSNorm of each token, times a row of a table.

    Args:
        x: bfloat16 [items, length, width].
        table: float32 [rows, 1 or items, width]; the row holds the norm's own weight too.
        first: int32 on the host, the row that the other is counted from; None for the first one.
        scale: The row.
        epsilon: Added to the mean squares.

    Returns:
        Like `x`.
    """
    width = int(x.shape[2])
    parameters = {"width": width, "threads": threads_of(width), "scale": scale}
    return results_of("scaled_norm", [x, table, _row(first), _host_scalar(epsilon)], [x.type], parameters)[0]


def has_swiglu(outputs: int) -> bool:
    """Whether a width suits `swiglu`: whole vectors of eight."""
    return outputs % 8 == 0


def swiglu(both: Tensor, outputs: int) -> Tensor:
    """silu(gate) · up behind their fused product; the twin is in `graphs.linear.GatedLinear`.

    Args:
        both: bfloat16 [items, length, 2 outputs], all gates of a token before its ups.
        outputs: How many.

    Returns:
        bfloat16 [items, length, outputs], rounded once.
    """
    result = TensorType(both.dtype, [*both.shape[:2], outputs], both.device)
    return results_of("swiglu", [both], [result], {"outputs": outputs})[0]


def widened(codes: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """Codes times the scale of their output, for the product of x with them; the twin is in `graphs.linear`.

    Args:
        codes: int8 [inputs, outputs].
        scales: float32 [outputs].
        x: [items, length, inputs]. It is not read; without it MAX would widen all weights when it loads the graph, and
            keep them so.

    Returns:
        Like `codes` in the dtype of x, rounded once.
    """
    return own("widened", [codes, scales, x], x, codes.shape, {"outputs": int(codes.shape[1])})


GROUP_SLABS = 256
"""Runs of pixels that `group_norm` measures apart: two blocks of threads for each multiprocessor of a Hopper GPU."""
_GROUP_THREADS = 512  # of `kernels/gpu_group_norm.mojo`


def has_group_norm(channels: int, groups: int) -> bool:
    """Whether widths suit `group_norm`: threads of eight channels fill a block, and groups do not cut their eights."""
    lanes, width = channels // 8, channels // groups
    whole = channels % 8 == 0 and channels % groups == 0 and _GROUP_THREADS % lanes == 0
    return whole and groups <= _GROUP_THREADS and (width % 8 == 0 or 8 % width == 0)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, epsilon: float, silu: bool) -> Tensor:
    """Group normalization in two launches, SiLU in the second of them; the twin is in `graphs.model.vae_blocks`.

    Args:
        x: bfloat16 [items, rows, columns, channels].
        weight: bfloat16 [channels].
        bias: Like `weight`.
        groups: Of neighbouring channels.
        epsilon: Added to the variances.
        silu: Whether SiLU follows.

    Returns:
        Like `x`, statistics in float32 and rounded once. NaN where a group's deviation is no number below
        `graphs.overflow.LIMIT`.
    """
    channels = int(x.shape[3])
    parameters: dict[str, bool | int] = {"channels": channels, "groups": groups, "slabs": GROUP_SLABS}
    measured = TensorType(DType.float32, [x.shape[0], GROUP_SLABS, groups, 2], x.device)
    (moments,) = results_of("group_moments", [x], [measured], parameters)
    inputs = [x, moments, weight, bias, _host_scalar(epsilon)]
    return results_of("group_norm_applied", inputs, [x.type], {**parameters, "silu": silu})[0]


def wide_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query keyᵀ / √width) value with one head of any width; the twin is `graphs.model.attention.attention`.

    Scores of up to 2²⁷ pairs at a time take 768 MiB beside the arguments.

    Args:
        query: bfloat16 [items, length, width]; the length is a multiple of 4.
        key: Like `query`.
        value: Like `query`.

    Returns:
        Like `query`.
    """
    return results_of("wide_attention", [query, key, value], [query.type], {"width": int(query.shape[2])})[0]


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(query keyᵀ · scale + mask) value with MAX's kernel; never put it on a CPU graph.

    Args:
        query: [items, queries, heads, head_dim].
        key: [items, keys, heads, head_dim].
        value: Like `key`.
        mask: The same dtype, [items, queries, keys], in memory as it is.
        scale: Factor of the scores.

    Returns:
        Like `query`.
    """
    return _masked_flash_attention(query, key, value, mask, scale)


def host_row(number: int) -> Tensor:
    """A row of a table, for `gated_norms` and `scaled_norm`."""
    return F.constant(number, DType.int32, device=CPU())


def _row(first: Tensor | None) -> Tensor:
    return host_row(0) if first is None else first


def _host_scalar(number: float) -> Tensor:
    """An argument that the host passes to a kernel."""
    return F.constant(number, DType.float32, device=CPU())
