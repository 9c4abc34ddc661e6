"""Ops of `kernels` one by one in a compiled module, and how near they must come to float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule

from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.graphs.cpu import InnerLoop, multiplying_by
from max_zimage.graphs.kernel_library import compile_with_kernels, uses_cpu_kernels
from max_zimage.graphs.layers import build, trace
from tests.tolerances import BFLOAT16_RATIO

TORCH: Mapping[ModelDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Typed(Module[..., list[Tensor]]):
    """A Module that says the types of its inputs."""

    types: list[TensorType]


class Op(Typed):
    """One call of an op."""

    def __init__(self, call: Callable[..., Tensor], types: list[TensorType]) -> None:
        self.call, self.types = call, types

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [self.call(*inputs)]


@dataclass(frozen=True)
class Ops:
    """Compiled ops by name, and the dtype that they were compiled in."""

    dtype: ModelDtype
    models: Mapping[str, Model]


Makers = Mapping[str, Callable[[], Typed]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Ops of a file of tests, to be compiled with those of other files: MAX takes as long for many as for a few.

    Attributes:
        makers: Of a dtype, by name.
        dtypes: In which they are wanted.
        weights: Of a dtype: data of the Modules' parameters.
        loop: In which way they multiply bfloat16.
    """

    makers: Callable[[ModelDtype], Makers]
    dtypes: Sequence[ModelDtype] = DTYPES
    weights: Callable[[ModelDtype], Mapping[str, Buffer]] = lambda dtype: {}
    loop: InnerLoop = "pairs"


class Placed(Typed):
    """A Module whose parameters have the name of a place before theirs."""

    def __init__(self, place: str, inner: Typed) -> None:
        self.place, self.types = place, inner.types
        setattr(self, place, inner)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        inner: Typed = getattr(self, self.place)
        return inner(*inputs)


def needs_kernels(dtype: ModelDtype) -> bool:
    """Whether graphs in this dtype use the ops here; the ops alone run on every CPU."""
    return uses_cpu_kernels(DType[dtype], CPU())


def compile_wanted(wanted: Mapping[str, Wanted]) -> dict[tuple[str, ModelDtype], Ops]:
    """Compile the ops of several files as one module of MAX.

    Returns:
        File and dtype -> its ops.
    """
    together, graphs, weights = GraphModule(), [], dict[str, Buffer]()
    names: dict[tuple[str, ModelDtype], list[str]] = {}
    for file, ops in wanted.items():
        for dtype in ops.dtypes:
            place, makers = f"{file}_{dtype}", ops.makers(dtype)
            weights |= {f"{place}.{name}": data for name, data in ops.weights(dtype).items()}
            names[file, dtype] = list(makers)
            for name, make in makers.items():
                with multiplying_by(ops.loop):
                    module = build(partial(_placed, place, make), DType[dtype], DeviceRef.CPU())
                    graphs.append(trace(module, module.types, f"{place} {name}", together))
    session = InferenceSession([CPU()])
    models = session.init_all(compile_with_kernels(session, together, graphs), weights_registry=weights)
    return {
        (file, dtype): Ops(dtype, {name: models[f"{file}_{dtype} {name}"] for name in names[file, dtype]})
        for file, dtype in names
    }


def _placed(place: str, make: Callable[[], Typed]) -> Placed:
    return Placed(place, make())


def compile_ops(makers: Makers, dtype: ModelDtype) -> Mapping[str, Model]:
    """Compile Modules without parameters as one module of MAX."""
    return compile_wanted({"ops": Wanted(makers=lambda _: makers, dtypes=[dtype])})["ops", dtype].models


def numbers(dtype: ModelDtype, *shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Normally distributed, and the same each time."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(TORCH[dtype])


def buffer(tensor: torch.Tensor) -> Buffer:
    """A tensor as inputs of compiled graphs are."""
    return Buffer.from_dlpack(tensor.contiguous())


def run(model: Model, *inputs: Buffer) -> torch.Tensor:
    """Its one result, in float64."""
    return torch.from_dlpack(model.execute(*inputs)[0]).double()


def check(ours: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """At most twice the error of the same operations done plainly in the same dtype."""
    assert ours.shape == exact.shape
    norm, allowed = exact.norm(), (plain.double() - exact).norm()
    assert (ours - exact).norm() <= BFLOAT16_RATIO * allowed + 1e-6 * norm
    assert norm == 0 or (ours - exact).norm() < 0.02 * norm
