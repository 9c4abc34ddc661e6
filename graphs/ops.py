"""The only file that names Mojo symbols: one op a function.

The project's own ops, in `kernels`, are compiled when the first graph that has one is traced. Two attention kernels of
MAX's library are wrapped besides. Which one a graph may use is decided in `graphs.attention` and `graphs.linear`; a GPU
op that reaches a CPU graph costs minutes and more than ten gigabytes before it fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from max.driver import CPU, Device
from max.dtype import DType
from max.engine import CompiledModel, InferenceSession
from max.experimental import custom
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, Graph, Module, Type
from max.nn.attention.mask_config import MHAMaskVariant
from max.nn.kernels import flash_attention_gpu as _flash_attention_gpu

from graphs.cpu import instructions

_PANEL = 32
"""Outputs side by side in a packed weight: as many sums as the kernels keep in two vector registers."""

_INSIDE, _BESIDE = Path(__file__).parent / "kernels", Path(__file__).parent.parent / "kernels"
KERNELS = _INSIDE if _INSIDE.is_dir() else _BESIDE
"""Folder of the Mojo sources: in a wheel inside this package, in a checkout beside it."""

_flash_attention_gpu_functional = F.functional(_flash_attention_gpu)
_own_kernels: ContextVar[bool] = ContextVar("_own_kernels", default=True)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Have graphs that are built inside use plain operations where they would use an op of `kernels`."""
    token = _own_kernels.set(False)
    try:
        yield
    finally:
        _own_kernels.reset(token)


def runs_here(dtype: DType, device: Device | DeviceRef) -> bool:
    """Whether graphs use `linear`, `gated_linear` and `attention`: in bfloat16, on a CPU that multiplies bfloat16."""
    return _own_kernels.get() and dtype == DType.bfloat16 and _is_host(device) and "avx512_bf16" in instructions()


def _is_host(device: Device | DeviceRef) -> bool:
    return device.is_host if isinstance(device, Device) else device.is_cpu()


def packable(inputs: int, outputs: int) -> bool:
    """Whether a matrix's sizes allow packing: pairs of inputs, and whole panels of outputs."""
    return inputs % 2 == 0 and outputs % _PANEL == 0


def packed_shape(inputs: int, outputs: int) -> tuple[int, int, int]:
    """Shape of a packed weight [outputs, inputs]: [panels, pairs, 2 · 32].

    Number 2 j + i of a pair belongs to the panel's output j and to input i of the pair.

    Raises:
        ValueError: If the sizes do not allow it.
    """
    if not packable(inputs, outputs):
        raise ValueError(
            f"a packed weight needs outputs divisible by {_PANEL} and inputs divisible by 2, got {outputs} and {inputs}"
        )
    return outputs // _PANEL, inputs // 2, 2 * _PANEL


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Product x weightᵀ, summed in float32; the twin is MAX's Linear.

    Args:
        x: bfloat16 [items, length, inputs].
        weight: bfloat16, see `packed_shape`.

    Returns:
        bfloat16 [items, length, outputs].
    """
    product = _linear()(x, weight)
    assert isinstance(product, Tensor)
    return product


def gated_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Product silu(x gateᵀ) · (x upᵀ), all in float32 until the end; the twin is `graphs.linear.GatedLinear`.

    Args:
        x: bfloat16 [items, length, inputs].
        weight: bfloat16, see `packed_shape`; in every panel 16 gates, then the ups that belong to them.

    Returns:
        bfloat16 [items, length, outputs], half as many as the weight has.
    """
    product = _gated_linear()(x, weight)
    assert isinstance(product, Tensor)
    return product


def attends(head_dim: int) -> bool:
    """Whether a head's width suits `attention`: both halves are whole vectors."""
    return head_dim % _PANEL == 0


def attention(
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
    """softmax(rope(norm(query)) rope(norm(key))ᵀ / √head_dim) value on a CPU; the twin is `graphs.attention`.

    Args:
        qkv: bfloat16 [items, length, heads + 2 key_value_heads, head_dim].
        query_weight: bfloat16 [head_dim], of the queries' RMSNorm.
        key_weight: bfloat16 [head_dim], of the keys' RMSNorm.
        rope: float32 [1 or items, length, head_dim/2, 2], cosine and sine; element i turns with i + head_dim/2.
        valid_length: uint32 [items]: keys at this position and beyond are not attended.
        heads: Of the queries; `key_value_heads` divides it.
        causal: Whether position i sees positions 0..i only.
        epsilon: Added to both norms' mean squares.

    Returns:
        bfloat16 [items, length, heads, head_dim]. Rows beyond `valid_length` are unspecified.
    """
    channels, head_dim = int(qkv.shape[2]), int(qkv.shape[3])
    op = _attention(heads, (channels - heads) // 2, head_dim, causal)
    added = F.constant([epsilon], DType.float32, device=CPU())
    mixed = op(qkv, query_weight, key_weight, rope, valid_length, added)
    assert isinstance(mixed, Tensor)
    return mixed


def graph_with_kernels(
    name: str, input_types: Sequence[Type[Any]], numbers: Iterable[tuple[DType, Device | DeviceRef]], module: Module
) -> Graph:
    """Begin a graph that may use the ops of `kernels`, if its parameters or inputs let it.

    It has to be given them now: MAX 26.7 does not find the ops of a subgraph otherwise.

    Args:
        name: The graph's name.
        input_types: Of its arguments.
        numbers: Dtypes and devices of parameters and arguments.
        module: Takes the graph.
    """
    sources = _libraries() if any(runs_here(*each) for each in numbers) else []
    return Graph(name, input_types=input_types, custom_extensions=sources, module=module)


def compile_with_kernels(session: InferenceSession, module: Module, graphs: Iterable[Graph]) -> CompiledModel:
    """Compile a module whose graphs may have ops of `kernels`.

    Args:
        session: Compiles it.
        module: Holds the graphs.
        graphs: Its graphs, from `graphs.layers.trace`.
    """
    sources = sorted({path for graph in graphs for path in graph.kernel_libraries_paths})
    return session.compile(module, custom_extensions=sources)


def _libraries() -> list[Path]:
    """`kernels`, compiled once a process, and again if its file in the folder for temporary ones is swept away."""
    found = list(_linear().extensions)
    if not all(path.exists() for path in found):
        for op in (_linear, _gated_linear, _attention):
            op.cache_clear()
        found = list(_linear().extensions)
    return found


@cache
def _linear() -> custom.CustomOp:
    return _declare_product("max_zimage.linear", _PANEL, [KERNELS])


@cache
def _gated_linear() -> custom.CustomOp:
    return _declare_product("max_zimage.gated_linear", _PANEL // 2, _libraries())


@cache
def _attention(heads: int, key_value_heads: int, head_dim: int, causal: bool) -> custom.CustomOp:
    items, length, tables = custom.Symbols("items", "length", "tables")
    channels = heads + 2 * key_value_heads
    return custom.declare(
        "max_zimage.attention",
        inputs={
            "qkv": custom.TemplateType(DType.bfloat16, [items, length, channels, head_dim]),
            "query_weight": custom.TemplateType(DType.bfloat16, [head_dim]),
            "key_weight": custom.TemplateType(DType.bfloat16, [head_dim]),
            "rope": custom.TemplateType(DType.float32, [tables, length, head_dim // 2, 2]),
            "valid_length": custom.TemplateType(DType.uint32, [items]),
            "epsilon": custom.TemplateType(DType.float32, [1]),
        },
        outputs=[custom.TemplateType(DType.bfloat16, [items, length, heads, head_dim])],
        parameters={
            "heads": heads,
            "key_value_heads": key_value_heads,
            "head_dim": head_dim,
            "causal": causal,
        },
        custom_extensions=_libraries(),
    )


def _declare_product(name: str, outputs_of_panel: int, sources: Sequence[Path]) -> custom.CustomOp:
    items, length, inputs, pairs, panels = custom.Symbols("items", "length", "inputs", "pairs", "panels")
    return custom.declare(
        name,
        inputs={
            "x": custom.TemplateType(DType.bfloat16, [items, length, inputs]),
            "weight": custom.TemplateType(DType.bfloat16, [panels, pairs, 2 * _PANEL]),
        },
        outputs=[custom.TemplateType(DType.bfloat16, [items, length, panels * outputs_of_panel])],
        custom_extensions=sources,
    )


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
