"""The graphs that are measured beside each other: a block in several ways, and its pieces alone.

A set is compiled as one module and travels as one artifact. A graph's parameters bear its name in front, so that each
can want its weights in an order of its own. Where a GPU is NVIDIA's the project's ops are used as a pipeline uses them;
the other variants are what they replace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from max.driver import Device
from max.dtype import DType
from max.engine import CompiledModel, InferenceSession
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule

from benchmarks.block import Shape
from benchmarks.gpu_run.modules import (
    HeadsBlock,
    OwnGate,
    OwnHeads,
    OwnNorms,
    Padded,
    PlainGate,
    PlainHeads,
    PlainNorms,
    Ragged,
    RaggedBlock,
    Whole,
    WholeBlock,
)
from max_zimage.graphs.kernel_library import compile_with_kernels, without_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.linear import linear
from max_zimage.graphs.model.blocks import FusedBlock, ModulatedBlock

if TYPE_CHECKING:
    from tests.references.gpu_ops import Widths

Types = tuple[TensorType, ...]
Make = Callable[[], Module[..., Any]]
ITEMS, LENGTH = "items", "length"
WIDE = 512
"""Width of the head of the autoencoder's attention."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One graph of a set.

    Attributes:
        case: What is done; variants of one case are comparable.
        title: What rows call it.
        make: Makes the Module.
        types: Of its arguments.
        plain: Whether it has plain operations in place of the project's ops.
    """

    case: str
    title: str
    make: Make
    types: Types
    plain: bool = False

    def kernels(self) -> AbstractContextManager[None]:
        """What it is built and traced under."""
        return without_kernels() if self.plain else nullcontext()


class Named(Module[..., Any]):
    """A Module whose parameters have its name in front."""

    def __init__(self, name: str, make: Make) -> None:
        self.name = name
        setattr(self, name, make())

    def forward(self, *arguments: Tensor) -> Any:
        """What the Module does."""
        return getattr(self, self.name)(*arguments)


def blocks(shape: Shape, dtype: DType, device: DeviceRef) -> dict[str, Variant]:
    """A block: as MAX's operations have it, then with one change after the other; on a CPU as it is there."""
    case = f"block, {shape.tokens} tokens"
    x, rope, lengths, offsets, four = _block_types(shape, dtype, device)
    five = TensorType(DType.float32, [5, ITEMS, shape.dim], device)

    def of(title: str, make: Callable[[Shape], Module[..., Any]], types: Types, *, plain: bool = True) -> Variant:
        return Variant(case=case, title=title, make=lambda: make(shape), types=types, plain=plain)

    if device.is_cpu():
        return {"own": of("own ops", ModulatedBlock, (x, rope, lengths, four), plain=False)}
    return {
        "padded": of("padded attention", ModulatedBlock, (x, rope, lengths, four)),
        "whole": of("no valid length", WholeBlock, (x, rope, four)),
        "ragged": of("ragged attention", RaggedBlock, (x, rope, offsets, four)),
        "heads": of("+ rotary_heads, values apart", HeadsBlock, (x, rope, offsets, four)),
        "norms": of("+ gated_norms", FusedBlock, (x, x, rope, offsets, five)),
        "own": of("own ops", FusedBlock, (x, x, rope, offsets, five), plain=False),
    }


def attentions(shape: Shape, dtype: DType, device: DeviceRef) -> dict[str, Variant]:
    """Attention alone, which is a kernel of MAX's in every variant; on a CPU there is one."""
    case = f"attention, {shape.tokens} tokens"
    head = TensorType(dtype, [ITEMS, LENGTH, shape.num_heads, shape.head_dim], device)
    _, _, lengths, offsets, _ = _block_types(shape, dtype, device)
    found = {"padded": Variant(case=case, title="padded", make=Padded, types=(head, head, head, lengths))}
    if device.is_cpu():
        return found
    return found | {
        "whole": Variant(case=case, title="whole", make=Whole, types=(head, head, head)),
        "ragged": Variant(case=case, title="ragged", make=Ragged, types=(head, head, head, offsets)),
    }


def products(shape: Shape, dtype: DType, device: DeviceRef) -> dict[str, Variant]:
    """The block's products as graphs have them multiplied, by cuBLAS on an NVIDIA GPU."""
    return {
        name: Variant(
            case=f"product {inputs} to {outputs}, {shape.tokens} tokens",
            title="MAX",
            make=partial(linear, inputs, outputs),
            types=(TensorType(dtype, [ITEMS, LENGTH, inputs], device),),
        )
        for name, (inputs, outputs) in widths(shape).items()
    }


def elementwise(shape: Shape, dtype: DType, device: DeviceRef) -> dict[str, Variant]:
    """What stands between the products, by MAX and by the project's ops; on a CPU one of MAX's to try."""
    x, rope, *_ = _block_types(shape, dtype, device)
    heads, table, both = (
        TensorType(dtype, [ITEMS, LENGTH, 3 * shape.num_heads, shape.head_dim], device),
        TensorType(DType.float32, [2, ITEMS, shape.dim], device),
        TensorType(dtype, [ITEMS, LENGTH, 2 * shape.ffn_dim], device),
    )
    pairs = TensorType(dtype, [ITEMS, LENGTH, 2 * shape.num_heads, shape.head_dim], device)
    cases = [f"{name}, {shape.tokens} tokens" for name in ("queries and keys", "gated norms", "swiglu")]
    makes: tuple[Make, ...] = (lambda: PlainHeads(shape), lambda: PlainNorms(shape), PlainGate)
    owns: tuple[Make, ...] = (lambda: OwnHeads(shape), OwnNorms, OwnGate)
    names, types = ("heads", "norms", "gate"), ((heads, rope), (x, x, table), (both,))
    plain = {
        f"{name}_plain": Variant(case=case, title="MAX", make=make, types=of, plain=True)
        for name, case, make, of in zip(names, cases, makes, types, strict=True)
    }
    if device.is_cpu():
        return {"gate_plain": plain["gate_plain"]}
    return plain | {
        f"{name}_own": Variant(case=case, title="own op", make=make, types=of)
        for name, case, make, of in zip(names, cases, owns, ((pairs, rope), *types[1:]), strict=True)
    }


def own_ops(shape: Shape, dtype: DType, device: DeviceRef) -> dict[str, Variant]:
    """Every op of the project's for a GPU once, in bfloat16; on a CPU they have bodies of the same arithmetic."""
    from tests.references.gpu_ops import AllOps

    made = AllOps(op_widths(shape))
    case = f"own ops, {shape.tokens} tokens"
    return {"all_ops": Variant(case=case, title="own ops", make=lambda: made, types=made.input_types(device))}


def _same(module: Module[..., Any]) -> Module[..., Any]:
    return module


def picture_ops(shape: Shape, dtype: DType, device: DeviceRef) -> dict[str, Variant]:
    """The ops for pictures, in bfloat16 too: group norms of every width, and the decoder's attention."""
    from tests.references.gpu_pictures import NORMS, Attention, Norm

    modules: dict[str, Norm | Attention] = {f"norm_{index}": Norm(*sizes) for index, sizes in enumerate(NORMS.values())}
    modules["wide"] = Attention(WIDE)
    return {
        name: Variant(case=name, title="own op", make=partial(_same, module), types=tuple(module.input_types(device)))
        for name, module in modules.items()
    }


def op_widths(shape: Shape) -> Widths:
    """The ops' sizes in a block of this shape."""
    from tests.references.gpu_ops import Widths

    heads = shape.num_heads
    return Widths(query_heads=heads, key_heads=heads, head_dim=shape.head_dim, dim=shape.dim, ffn=shape.ffn_dim)


SETS: Mapping[str, Callable[[Shape, DType, DeviceRef], dict[str, Variant]]] = {
    "blocks": blocks,
    "attentions": attentions,
    "products": products,
    "elementwise": elementwise,
    "own_ops": own_ops,
    "picture_ops": picture_ops,
}
"""Name of an artifact -> its graphs."""


def widths(shape: Shape) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the block's products: queries, keys and values in one or in two, and the other three."""
    dim, ffn = shape.dim, shape.ffn_dim
    return {
        "qkv": (dim, 3 * dim),
        "qk": (dim, 2 * dim),
        "out": (dim, dim),  # of the values too
        "w13": (dim, 2 * ffn),
        "w2": (ffn, dim),
    }


def compile_set(name: str, shape: Shape, dtype: DType, session: InferenceSession, device: Device) -> CompiledModel:
    """Compile the graphs of a set as one module."""
    place, together, traced = DeviceRef.from_device(device), GraphModule(), []
    for graph, variant in SETS[name](shape, dtype, place).items():
        with variant.kernels():
            module = module_of(graph, variant, dtype, place)
            traced.append(trace(module, variant.types, graph, together))
    return compile_with_kernels(session, together, traced)


def module_of(name: str, variant: Variant, dtype: DType, device: DeviceRef) -> Module[..., Any]:
    """A variant's Module, whose parameters have no data."""
    return build(lambda: Named(name, variant.make), dtype, device)


def _block_types(shape: Shape, dtype: DType, device: DeviceRef) -> Sequence[TensorType]:
    """Tokens, rotations, valid lengths, offsets and modulation."""
    return (
        TensorType(dtype, [ITEMS, LENGTH, shape.dim], device),
        TensorType(DType.float32, [ITEMS, LENGTH, shape.head_dim // 2, 2], device),
        TensorType(DType.uint32, [ITEMS], device),
        TensorType(DType.uint32, ["offsets"], device),
        TensorType(DType.float32, [4, ITEMS, shape.dim], device),
    )
