"""The project's Mojo sources as a library of MAX's: found, compiled once a process, and given to graphs.

`graph_with_kernels` begins every graph and `compile_with_kernels` compiles it; `own` and `results_of` call an op. What
the ops are is in `graphs.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from max.driver import Device, accelerator_api
from max.dtype import DType
from max.engine import CompiledModel, InferenceSession
from max.experimental import custom
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, Dim, Graph, Module, TensorType, Type

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
"""Folder of the Mojo sources: beside `graphs`, in a checkout and in a wheel."""

_package: list[Path] = []
_bring: Callable[[Callable[[], Path]], Path] = lambda compile: compile()  # noqa: E731  replaced by `bring_package_by`
_own_kernels: ContextVar[bool] = ContextVar("_own_kernels", default=True)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Have graphs that are built inside use plain operations where they would use an op of `kernels`."""
    token = _own_kernels.set(False)
    try:
        yield
    finally:
        _own_kernels.reset(token)


def uses_cpu_kernels(dtype: DType, device: Device | DeviceRef) -> bool:
    """Whether graphs use the ops of `kernels` for a CPU: in float32 and bfloat16, whatever the processor has."""
    on_host = device.is_host if isinstance(device, Device) else device.is_cpu()
    return _own_kernels.get() and on_host and dtype in (DType.float32, DType.bfloat16)


def runs_on_nvidia(dtype: DType, device: Device | DeviceRef) -> bool:
    """Whether graphs use the ops of `kernels` for a GPU: in bfloat16 on NVIDIA's, what they were made for."""
    return _own_kernels.get() and dtype == DType.bfloat16 and is_nvidia(device)


def is_nvidia(device: Device | DeviceRef) -> bool:
    """Whether a device is a GPU of NVIDIA's, where graphs call cuBLAS and cuDNN."""
    host = device.is_host if isinstance(device, Device) else device.is_cpu()
    return not host and accelerator_api() == "cuda"


def own_kernels() -> bool:
    """Whether graphs use ops of `kernels` at all: those for any device."""
    return _own_kernels.get()


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
    sources = libraries() if any(_may_use(*each) for each in numbers) else []
    return Graph(name, input_types=input_types, custom_extensions=sources, module=module)


def _may_use(dtype: DType, device: Device | DeviceRef) -> bool:
    # Weights of these dtypes are quantized ones.
    return dtype in (DType.uint8, DType.int8) or uses_cpu_kernels(dtype, device) or runs_on_nvidia(dtype, device)


def compile_with_kernels(session: InferenceSession, module: Module, graphs: Iterable[Graph]) -> CompiledModel:
    """Compile a module whose graphs may have ops of `kernels`; on an NVIDIA GPU products of matrices are cuBLAS's.

    MAX 26.7's own for Hopper are wrong in places (modular/modular 6883, 7146): in bfloat16 over 32 rows a block of the
    published widths was 70 % off on an H200, with cuBLAS 0.8 %.

    Args:
        session: Compiles it.
        module: Holds the graphs.
        graphs: Its graphs, from `graphs.layers.trace`.
    """
    sources = sorted({path for graph in graphs for path in graph.kernel_libraries_paths})
    if any(device.api == "cuda" for device in session.devices):
        session._use_vendor_blas("true")  # public as `use_vendor_blas` of MAX's server alone
    return session.compile(module, custom_extensions=sources)


def own(
    name: str,
    inputs: Sequence[Tensor],
    like: Tensor,
    shape: Sequence[Dim | int],
    parameters: Mapping[str, bool | int] | None = None,
) -> Tensor:
    """One result of an op of `kernels`, in the dtype and on the device of one of its inputs."""
    return results_of(name, inputs, [TensorType(like.dtype, list(shape), like.device)], parameters)[0]


def results_of(
    name: str,
    inputs: Sequence[Tensor],
    results: Sequence[TensorType],
    parameters: Mapping[str, bool | int] | None = None,
) -> list[Tensor]:
    """All results of an op of `kernels`, which runs on the device of the first."""
    device = results[0].device
    return list(
        F.custom(f"max_zimage.{name}", device, inputs, results, parameters=parameters, custom_extensions=libraries())
    )


def libraries() -> list[Path]:
    """`kernels` as a package, brought once a process, and again if its file is swept away from where it lies."""
    if not all(path.exists() for path in _package):
        _package.clear()
    if not _package:
        _package.append(_bring(_compiled))
    return list(_package)


def bring_package_by(bring: Callable[[Callable[[], Path]], Path]) -> None:
    """Have the package come from elsewhere than from compiling it in every process.

    Args:
        bring: Is given what compiles it, and returns where it is.
    """
    global _bring
    _bring = bring


def _compiled() -> Path:
    """One op stands for all: to declare it is MAX's public way to compile the package that it is in."""
    items, length, inputs, panels, width = custom.Symbols("items", "length", "inputs", "panels", "width")
    declared = custom.declare(
        "max_zimage.linear",
        inputs={
            "x": custom.TemplateType(DType.float32, [items, length, inputs]),
            "weight": custom.TemplateType(DType.float32, [panels, inputs, width]),
        },
        outputs=[custom.TemplateType(DType.float32, [items, length, panels * width])],
        parameters={"widened": False},
        custom_extensions=[KERNELS],
    )
    (package,) = declared.extensions
    return package
