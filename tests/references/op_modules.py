"""Ops of `kernels` one by one in a compiled module, and how near they must come to float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule

from max_zimage.device.dtypes import ModelDtype
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


def needs_kernels(dtype: ModelDtype) -> bool:
    """Whether graphs in this dtype use the ops here; the ops alone run on every CPU."""
    return uses_cpu_kernels(DType[dtype], CPU())


def compile_ops(
    makers: Mapping[str, Callable[[], Typed]], dtype: DType, weights: Mapping[str, Buffer]
) -> dict[str, Model]:
    """Compile Modules as one module of MAX."""
    together, graphs = GraphModule(), []
    for name, make in makers.items():
        module = build(make, dtype, DeviceRef.CPU())
        graphs.append(trace(module, module.types, name, together))
    session = InferenceSession([CPU()])
    return session.init_all(compile_with_kernels(session, together, graphs), weights_registry=dict(weights))


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
