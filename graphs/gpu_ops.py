"""The project's ops for a GPU by their Mojo names, one op a function; `graphs.ops` has those for a CPU.

Which one a graph may use is decided by `graphs.kernel_library.runs_on_nvidia` and by the widths that an op supports,
which stand beside it. Everywhere else plain operations are used, the ops' twins: they define what is right. Tests run
the ops on a CPU, where they take float32 too, in loops of the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from max.driver import CPU
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import TensorType

from max_zimage.graphs.kernel_library import libraries


def _own(
    name: str,
    inputs: Sequence[Tensor],
    results: Sequence[TensorType],
    parameters: Mapping[str, bool | int] | None = None,
) -> list[Tensor]:
    """Results of an op of `kernels`, which runs on the device of the first."""
    device = results[0].device
    return list(
        F.custom(f"max_zimage.{name}", device, inputs, results, parameters=parameters, custom_extensions=libraries())
    )


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
    """Queries and keys, rope(norm(heads)), in one pass; the twin is in `graphs.attention`.

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
    query, key = _own(
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
    branch: Tensor, residual: Tensor, table: Tensor, *, gate: int, scale: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    """A branch added, out = residual + gate · norm(branch), and the next one prepared, norm(out) · scale.

    Args:
        branch: bfloat16 [items, length, width].
        residual: Like `branch`.
        table: float32 [rows, width]; its rows hold the norms' own weights too.
        gate: The table's row that multiplies the branch.
        scale: The table's row that multiplies the second norm.
        epsilon: Added to the mean squares.

    Returns:
        Both, like `branch`; the second is that of the first before it was rounded.
    """
    width = int(branch.shape[2])
    parameters = {"width": width, "threads": threads_of(width), "gate": gate, "scale": scale}
    inputs = [branch, residual, table, _host_scalar(epsilon)]
    added, normed = _own("gated_norms", inputs, [branch.type, branch.type], parameters)
    return added, normed


def scaled_norm(x: Tensor, table: Tensor, *, scale: int, epsilon: float) -> Tensor:
    """RMSNorm of each token, times a row of a table.

    Args:
        x: bfloat16 [items, length, width].
        table: float32 [rows, width]; the row holds the norm's own weight too.
        scale: The row.
        epsilon: Added to the mean squares.

    Returns:
        Like `x`.
    """
    width = int(x.shape[2])
    parameters = {"width": width, "threads": threads_of(width), "scale": scale}
    return _own("scaled_norm", [x, table, _host_scalar(epsilon)], [x.type], parameters)[0]


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
    return _own("swiglu", [both], [result], {"outputs": outputs})[0]


def _host_scalar(number: float) -> Tensor:
    """An argument that the host passes to a kernel."""
    return F.constant(number, DType.float32, device=CPU())
