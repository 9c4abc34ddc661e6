"""The ops that graphs call, the project's own and MAX's, by their Mojo names: one op per function.

The project's own are in `kernels`. Three attention kernels of MAX's library are wrapped besides. Which one a graph may
use is decided in `graphs.model.attention`, `graphs.linear` and `graphs.model.vae_blocks`, by
`graphs.kernel_library.uses_cpu_kernels`; a GPU op that reaches a CPU graph costs minutes and more than ten gigabytes
before it fails.

A packed weight is [panels, units, numbers]: panels of 32 outputs side by side, and units of 32 bits along the inputs,
which are one float32 number or two bfloat16 numbers. What does not fill the last panel or unit is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from max.driver import CPU
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import Dim, StaticDim
from max.nn.attention.mask_config import MHAMaskVariant
from max.nn.kernels import flash_attention_gpu as _flash_attention_gpu
from max.nn.kernels import flash_attention_ragged_gpu as _flash_attention_ragged_gpu

from max_zimage.graphs.cpu import inner_loop
from max_zimage.graphs.kernel_library import own

PANEL = 32
"""Outputs side by side in a packed weight: as many sums as the kernels keep in two vector registers."""
_STEP = 32  # inputs of a tile's row

_flash_attention_gpu_functional = F.functional(_flash_attention_gpu)
_flash_attention_ragged_gpu_functional = F.functional(_flash_attention_ragged_gpu)


def packable(inputs: int, dtype: DType) -> bool:
    """Whether a matrix can be packed: its inputs are whole units."""
    return inputs % _per_unit(dtype) == 0


def packed_shape(inputs: int, outputs: int, dtype: DType) -> tuple[int, int, int]:
    """Shape of a packed weight [outputs, inputs]: [panels, units, 32 numbers a unit].

    Number j · k + i of a unit of k numbers belongs to the panel's output j and to input i of the unit.
    """
    return -(-outputs // PANEL), -(-inputs // _per_unit(dtype)), PANEL * _per_unit(dtype)


def gated_rows(outputs: int) -> int:
    """Outputs of a packed weight whose panels hold 16 gates each, then the ups that belong to them.

    A last panel that is not full has too few of both.
    """
    return PANEL * -(-outputs // (PANEL // 2))


def linear(x: Tensor, weight: Tensor, outputs: int) -> Tensor:
    """Product x weightᵀ, summed in float32; the twin is MAX's Linear.

    Args:
        x: float32 or bfloat16 [items, length, inputs].
        weight: The same dtype, packed from [outputs, inputs], see `packed_shape`.
        outputs: How many.

    Returns:
        The same dtype, [items, length, outputs].
    """
    return _product("linear", x, weight, outputs)


def gated_linear(x: Tensor, weight: Tensor, outputs: int) -> Tensor:
    """Product silu(x gateᵀ) · (x upᵀ), all in float32 until the end; the twin is `graphs.linear.GatedLinear`.

    Args:
        x: float32 or bfloat16 [items, length, inputs].
        weight: The same dtype, packed: in every panel 16 gates, then the ups that belong to them.
        outputs: How many, half of the weight's.

    Returns:
        The same dtype, [items, length, outputs].
    """
    return _product("gated_linear", x, weight, outputs)


def supports_head_dim(head_dim: int) -> bool:
    """Whether a head's width suits `rotary_attention` and `attention`: both halves are whole vectors."""
    return head_dim % PANEL == 0


def rotary_attention(
    qkv: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    rope: Tensor,
    valid_length: Tensor,
    *,
    heads: int,
    causal: bool,
    epsilon: float,
) -> Tensor:
    """softmax(rope(norm(query)) rope(norm(key))ᵀ / √head_dim) value on a CPU; the twin is in `graphs.model.attention`.

    Args:
        qkv: float32 or bfloat16 [items, length, heads + 2 key_value_heads, head_dim].
        query_weight: The same dtype, [head_dim], of the queries' RMSNorm.
        key_weight: The same dtype, [head_dim], of the keys' RMSNorm.
        rope: float32 [1 or items, length, head_dim/2, 2], cosine and sine; element i turns with i + head_dim/2.
        valid_length: uint32 [items]: keys at this position and beyond are not attended.
        heads: Of the queries; `key_value_heads` divides it.
        causal: Whether position i sees positions 0..i only.
        epsilon: Added to both norms' mean squares.

    Returns:
        The same dtype, [items, length, heads, head_dim]. Rows beyond `valid_length` are unspecified.
    """
    added = F.constant([epsilon], DType.float32, device=CPU())
    inputs = [qkv, query_weight, key_weight, rope, valid_length, added]
    return _attention(inputs, heads=heads, causal=causal, rotary=True)


def attention(qkv: Tensor, valid_length: Tensor, *, heads: int) -> Tensor:
    """softmax(query keyᵀ / √head_dim) value on a CPU; the twin is `graphs.model.attention.attention`.

    Args:
        qkv: float32 or bfloat16 [items, length, 3 heads, head_dim].
        valid_length: uint32 [items]: keys at this position and beyond are not attended.
        heads: As many for queries, keys and values.

    Returns:
        The same dtype, [items, length, heads, head_dim].
    """
    unread = F.constant([0.0], qkv.dtype, device=CPU())
    rope, epsilon = (F.constant(each, DType.float32, device=CPU()) for each in ([[[[0.0]]]], [0.0]))
    inputs = [qkv, unread, unread, rope, valid_length, epsilon]
    return _attention(inputs, heads=heads, causal=False, rotary=False)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, epsilon: float) -> Tensor:
    """What normalizes each group of neighbouring channels; the twin is in `graphs.model.vae_blocks`.

    Args:
        x: float32 [items, rows, columns, channels].
        weight: float32 or bfloat16 [channels].
        bias: Like `weight`.
        groups: How many; divides the channels.
        epsilon: Added to the variances.

    Returns:
        float32 [items, 3, channels]: means, scales and offsets, so that (x - mean) · scale + offset is normalized.
    """
    added = F.constant([epsilon], DType.float32, device=CPU())
    return own("group_norm", [x, weight, bias, added], x, [x.shape[0], 3, x.shape[3]], {"groups": groups})


def convolution(
    x: Tensor,
    norm: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    *,
    outputs: int,
    stride: int = 1,
    upsampling: int = 1,
) -> Tensor:
    """Convolution of upsampled(silu(norm(x))), + bias + shortcut, on a CPU.

    The twin is `graphs.model.vae_blocks.PlainConv`. A kernel of three has a border of zeros, with
    a stride of two behind only.

    Args:
        x: float32 [items, rows, columns, inputs].
        norm: float32 [items, 3, inputs] from `group_norm`, or None for neither norm nor SiLU.
        weight: float32 or bfloat16, packed for each of the kernel's taps: [panels, 1 or 9, units, numbers].
        bias: Like `weight`, [outputs].
        shortcut: float32 like the result, or None for none.
        outputs: How many channels.
        stride: 1 or 2.
        upsampling: How often each pixel is repeated in both directions first.

    Returns:
        float32 [items, rows · upsampling / stride, columns · upsampling / stride, outputs].
    """
    items, rows, columns, _ = x.shape
    shape: list[Dim | int] = [items, rows * upsampling // stride, columns * upsampling // stride, outputs]
    norm_or_nothing = F.constant([[[0.0]]], DType.float32, device=CPU()) if norm is None else norm
    shortcut_or_nothing = F.constant([[[[0.0]]]], DType.float32, device=CPU()) if shortcut is None else shortcut
    parameters = {
        "stride": stride,
        "upsampling": upsampling,
        "normed": norm is not None,
        "residual": shortcut is not None,
    }
    return own("convolution", [x, norm_or_nothing, weight, bias, shortcut_or_nothing], x, shape, parameters)


def _product(name: str, x: Tensor, weight: Tensor, outputs: int) -> Tensor:
    """A layer, in tiles where that is the way and its inputs are whole rows of tiles."""
    inputs: Dim = x.shape[2]
    shape: list[Dim | int] = [*x.shape[:2], outputs]
    in_tiles = x.dtype == DType.bfloat16 and inner_loop() == "tiles"
    if in_tiles and isinstance(inputs, StaticDim) and int(inputs) % _STEP == 0:
        return own(f"tile_{name}", [x, weight], x, shape)
    return own(name, [x, weight], x, shape, widened(x.dtype))


def _attention(inputs: Sequence[Tensor], *, heads: int, causal: bool, rotary: bool) -> Tensor:
    qkv = inputs[0]
    channels, head_dim = int(qkv.shape[2]), int(qkv.shape[3])
    parameters = {
        "heads": heads,
        "key_value_heads": (channels - heads) // 2,
        "head_dim": head_dim,
        "causal": causal,
        "rotary": rotary,
    }
    return own("attention", inputs, qkv, [*qkv.shape[:2], heads, head_dim], parameters)


def widened(dtype: DType) -> dict[str, bool]:
    """In which way ops of `kernels` are to multiply bfloat16, as their parameter; float32 knows one alone."""
    return {"widened": dtype == DType.bfloat16 and inner_loop() == "widened"}


def _per_unit(dtype: DType) -> int:
    """Numbers in 32 bits."""
    return 4 // dtype.size_in_bytes


def flash_attention_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(query keyᵀ · scale + mask) value, block by block, on a CPU.

    Scores are accumulated in the dtype of the arguments, so callers pass float32.

    Args:
        query: float32 [batch, length, heads, head_dim].
        key: float32 [batch, length, key_value_heads, head_dim]; `key_value_heads` divides `heads`.
        value: like `key`.
        mask: float32, added to the scaled scores; [length, length], [batch, length, length] or [batch, heads, length,
            length]. It is read through a fused load: a mask computed from positions is never written to memory.
        scale: Factor of the scores, usually 1/sqrt(head_dim).

    Returns:
        float32 [batch, length, heads, head_dim].
    """
    factor = F.constant(scale, DType.float32, device=CPU())
    return F.custom(
        "mo.composite.masked_flash_attention_cpu",
        device=query.device,
        values=[query, key, value, mask, factor],
        out_types=[query.type],
    )[0]


def flash_attention_gpu(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool, valid_length: Tensor | None
) -> Tensor:
    """softmax(query keyᵀ · scale) value with MAX's GPU kernel; never put it on a CPU graph.

    Args:
        query: [batch, length, heads, head_dim].
        key: [batch, length, key_value_heads, head_dim].
        value: like `key`.
        scale: Factor of the scores.
        causal: Whether position i sees positions 0..i only.
        valid_length: uint32 [batch], the number of leading positions that exist; None where all do.

    Returns:
        [batch, length, heads, head_dim]; rows beyond the valid length are unspecified.
    """
    variant = MHAMaskVariant.CAUSAL_MASK if causal else MHAMaskVariant.NULL_MASK
    if valid_length is None:
        return _flash_attention_gpu_functional(query, key, value, mask_variant=variant, scale=scale)
    return _flash_attention_gpu_functional(
        query, key, value, mask_variant=variant, scale=scale, valid_length=valid_length
    )


def flash_attention_ragged_gpu(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: Tensor, scale: float
) -> Tensor:
    """softmax(query keyᵀ · scale) value within each sequence, with MAX's GPU kernel; never put it on a CPU graph.

    Args:
        query: [tokens, heads, head_dim], the sequences one after the other.
        key: Like `query`.
        value: Like `query`.
        offsets: uint32 [sequences + 1]: where each sequence begins, and where the last one ends.
        longest: uint32 [1] on the host: no sequence has more tokens.
        scale: Factor of the scores.

    Returns:
        Like `query`.
    """
    return _flash_attention_ragged_gpu_functional(
        query, key, value, offsets, longest, mask_variant=MHAMaskVariant.NULL_MASK, scale=scale
    )
