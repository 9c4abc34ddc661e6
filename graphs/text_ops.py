"""Ops of `kernels` for models that write text, on a CPU.

What uses them is decided in `graphs.diffusion_gemma`, `graphs.model.cached_attention` and `graphs.linear`.
"""

from __future__ import annotations

from collections.abc import Sequence

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import TensorType

from max_zimage.graphs.kernel_library import own, results_of
from max_zimage.graphs.ops import gated_rows, packed_shape, widened


def gelu_linear(x: Tensor, weight: Tensor, outputs: int) -> Tensor:
    """Product gelu(x gateᵀ) · (x upᵀ), by the approximation with tanh; the twin is `graphs.linear.GeluLinear`.

    Args:
        x: float32 or bfloat16 [items, length, inputs].
        weight: The same dtype, packed as `graphs.ops.gated_linear` wants it.
        outputs: How many, half of the weight's.

    Returns:
        The same dtype, [items, length, outputs].
    """
    return own("gelu_linear", [x, weight], x, [*x.shape[:2], outputs], widened(x.dtype))


def expert_shapes(
    experts: int, hidden: int, width: int, dtype: DType
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Shapes of the packed weights of experts: of gates and ups, and of what leads down.

    Args:
        experts: How many.
        hidden: Inputs, and outputs.
        width: Gates of an expert.
        dtype: Of the weights.
    """
    gate_up = packed_shape(hidden, gated_rows(width), dtype)
    return (experts, *gate_up), (experts, *packed_shape(width, hidden, dtype))


def experts(
    x: Tensor, scores: Tensor, scales: Tensor, gate_up: Tensor, down: Tensor, *, each: int, width: int
) -> Tensor:
    """Sum of shares times what the experts of the largest scores make of a token, on a CPU.

    The twin is `graphs.diffusion_gemma.feed_forward.DenseExperts`. All is float32 until the end, but what is gated.

    Args:
        x: float32 or bfloat16 [rows, length, hidden].
        scores: float32 [rows, length, experts].
        scales: float32 [experts], by which the shares of the chosen, which are 1 together, are multiplied.
        gate_up: Like `x`, see `expert_shapes`.
        down: Like `x`, see `expert_shapes`.
        each: Experts that a token is sent to; of equal scores the first ones.
        width: Gates of an expert.

    Returns:
        Like `x`.
    """
    parameters = {"each": each, "width": width, **widened(x.dtype)}
    return own("experts", [x, scores, scales, gate_up, down], x, x.shape, parameters)


def cached_attention(
    qkv: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    rope: Tensor,
    mask: Tensor,
    past: tuple[Tensor, ...],
    *,
    heads: int,
    key_heads: int,
    unit_values: bool,
    epsilon: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(scale · rope(norm(query)) keysᵀ + mask) values on a CPU; the twin is in `graphs.model.cached_attention`.

    Args:
        qkv: float32 or bfloat16 [rows, length, channels, head_dim], see `graphs.ops.supports_head_dim`.
        query_weight: The same dtype, [head_dim], of the queries' RMSNorm.
        key_weight: The same dtype, [head_dim], of the keys' RMSNorm.
        rope: float32 [length, head_dim/2, 2], cosine and sine; element i turns with i + head_dim/2.
        mask: float32 [rows, length, seen], added to the scores.
        past: Keys and values of what was read, [rows, cached, key_heads, head_dim] each.
        heads: Of the queries.
        key_heads: Of keys and values. Where there are no channels for values, they are keys before norm and RoPE.
        unit_values: Whether values are normalized, without a weight.
        epsilon: Added to mean squares.
        scale: Factor of the scores.

    Returns:
        The same dtype, [rows, length, heads, head_dim]; new keys and values, [rows, length, key_heads, head_dim] each.
    """
    rows, length, channels, head_dim = qkv.shape
    parameters = {
        "heads": heads,
        "key_heads": key_heads,
        "head_dim": int(head_dim),
        "has_values": int(channels) == heads + 2 * key_heads,
        "unit_values": unit_values,
    }
    types = [
        TensorType(qkv.dtype, [rows, length, count, head_dim], qkv.device) for count in (heads, key_heads, key_heads)
    ]
    factors = F.constant([epsilon, scale], DType.float32, device=qkv.device)
    inputs = [qkv, query_weight, key_weight, rope, mask, *past, factors]
    mixed, key, value = results_of("cached_attention", inputs, types, parameters)
    return mixed, key, value


def added_norms(
    x: Tensor, branch: Tensor, weight: Tensor, weights: Sequence[Tensor], *, factor: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of x and norm(branch), and three norms of it, on a CPU; the twin is `graphs.diffusion_gemma.layer.Layer`.

    Args:
        x: float32 or bfloat16 [rows, length, width].
        branch: Like `x`.
        weight: The same dtype, [width], of the branch's RMSNorm.
        weights: Of the three norms.
        factor: Of the third of them.
        epsilon: Added to mean squares.

    Returns:
        The sum, and its three norms, all like `x`.
    """
    factors = F.constant([epsilon, factor], DType.float32, device=x.device)
    inputs = [x, branch, weight, *weights, factors]
    added, first, second, third = results_of("added_norms", inputs, [x.type] * 4)
    return added, first, second, third


def joined_norms(
    x: Tensor, branches: tuple[Tensor, Tensor], weights: Sequence[Tensor], scalar: Tensor, *, epsilon: float
) -> Tensor:
    """(x + norm(norm(first) + norm(second))) · scalar, on a CPU; the twin is `graphs.diffusion_gemma.layer.Layer`.

    Args:
        x: float32 or bfloat16 [rows, length, width].
        branches: Like `x` both.
        weights: The same dtype, [width] each, of the first branch's RMSNorm, the second one's, and that of their sum.
        scalar: The same dtype, [1].
        epsilon: Added to mean squares.

    Returns:
        Like `x`.
    """
    added = F.constant([epsilon], DType.float32, device=x.device)
    inputs = [x, *branches, *weights, scalar, added]
    return own("joined_norms", inputs, x, x.shape)


def table_logits(x: Tensor, table: Tensor, softcap: float, temperature: Tensor) -> Tensor:
    """Softcap · tanh(x tableᵀ / softcap) / temperature, on a CPU.

    The twin is `graphs.diffusion_gemma.layer.ScaledEmbedding.logits`.

    Args:
        x: float32 or bfloat16 [rows, length, width].
        table: The same dtype, [vocabulary, width].
        softcap: What logits come near to and never reach.
        temperature: float32 [1].

    Returns:
        float32 [rows, length, vocabulary].
    """
    cap = F.constant([softcap], DType.float32, device=x.device)
    return own("table_logits", [x, table, cap, temperature], cap, [*x.shape[:2], table.shape[0]])


def table_means(logits: Tensor, enabled: Tensor, table: Tensor, factor: float) -> Tensor:
    """softmax(logits) table · factor · enabled, on a CPU.

    The twin is `graphs.diffusion_gemma.layer.ScaledEmbedding.means`.

    Args:
        logits: float32 or bfloat16 [rows, length, vocabulary].
        enabled: float32 [rows]; of a row that has 0 nothing is read.
        table: Like `logits`, [vocabulary, width].
        factor: Of all.

    Returns:
        Like `logits`, [rows, length, width].
    """
    times = F.constant([factor], DType.float32, device=logits.device)
    return own("table_means", [logits, enabled, table, times], logits, [*logits.shape[:2], table.shape[1]])


def likeliest(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is told of logits, on a CPU; the twin is in `graphs.diffusion_gemma.stack`.

    Args:
        logits: float32 [rows, length, vocabulary].
        top: How many of the likeliest tokens are named.

    Returns:
        float32 chances [rows, length, top], over the whole vocabulary, falling; int64 tokens of the same shape, the
        smaller one first where chances are equal; int64 [rows, length], the first of these; float32 entropies [rows,
        length], natural logarithm.
    """
    place, positions = logits.device, logits.shape[:2]
    types = [
        TensorType(DType.float32, [*positions, top], place),
        TensorType(DType.int64, [*positions, top], place),
        TensorType(DType.int64, positions, place),
        TensorType(DType.float32, positions, place),
    ]
    chances, tokens, first, entropies = results_of("likeliest", [logits], types)
    return chances, tokens, first, entropies
