"""Sets of variants on the device: read from their artifact, given weights, and called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from max.driver import Buffer
from max.engine import Model
from max.graph import DeviceRef

from benchmarks.block import PACKINGS
from benchmarks.gpu_run.bench import Bench, host_buffer
from benchmarks.gpu_run.compile import file_of, keep
from benchmarks.gpu_run.variants import SETS, Variant, compile_set, module_of
from max_zimage.checkpoint.layout import weight_buffer

Numbers = Callable[[str, str, Sequence[int]], torch.Tensor]
"""Graph, name of a parameter in it, and its shape there -> its numbers, float32, in the plain layer's shape."""


@dataclass(frozen=True)
class Loaded:
    """One graph that can be called."""

    variant: Variant
    model: Model

    def __call__(self, *arguments: Buffer) -> list[Buffer]:
        """Run it."""
        return list(self.model.execute(*arguments))


def load(bench: Bench, name: str, numbers: Numbers) -> dict[str, Loaded]:
    """The graphs of a set.

    Args:
        bench: Where they run.
        name: Of the set.
        numbers: Its weights.

    Returns:
        By name.

    Raises:
        FileNotFoundError: If the artifact of these sources is not there, and sizes are not small.
    """
    file = file_of(bench.work, name, small=bench.small)
    if not file.exists() and not bench.small:
        raise FileNotFoundError(f"no {file}: run benchmarks.gpu_run.compile on these sources first")
    if not file.exists():
        keep(compile_set(name, bench.shape, bench.max_dtype, bench.session, bench.device), file)
    weights = weights_of(bench, name, numbers)
    models = bench.session.init_all(bench.session.compile(file), weights_registry=weights)
    return {graph: Loaded(variant, models[graph]) for graph, variant in _variants(bench, name).items()}


def weights_of(bench: Bench, name: str, numbers: Numbers) -> dict[str, Buffer]:
    """The weights of a set in host memory, by the names that its artifact has for them."""
    weights: dict[str, Buffer] = {}
    for graph, variant in _variants(bench, name).items():
        weights |= _weights(bench, graph, variant, numbers)
    return weights


def random_numbers(graph: str, name: str, shape: Sequence[int]) -> torch.Tensor:
    """Of any parameter: a matrix keeps what it multiplies near one, and a norm's weights lie around one."""
    generator = torch.Generator().manual_seed(len(graph) + len(name) + sum(shape))
    numbers = torch.randn(tuple(shape), generator=generator)
    return 1 + 0.1 * numbers if len(shape) == 1 else numbers / shape[-1] ** 0.5


def _variants(bench: Bench, name: str) -> dict[str, Variant]:
    return SETS[name](bench.shape, bench.max_dtype, DeviceRef.from_device(bench.device))


def _weights(bench: Bench, graph: str, variant: Variant, numbers: Numbers) -> dict[str, Buffer]:
    """A graph's parameters in host memory, packed where they are on a CPU."""
    with variant.kernels():
        module = module_of(graph, variant, bench.max_dtype, DeviceRef.from_device(bench.device))
        found = {}
        for parameter, tensor in module.parameters:
            leaf = parameter.removeprefix(f"{graph}.")
            values = numbers(graph, leaf, [int(side) for side in tensor.shape])
            if bench.device.is_host:
                packing = PACKINGS.get(leaf, "panels" if tensor.rank == 3 else None)
                found[parameter] = weight_buffer(values.numpy(), bench.max_dtype, packing)
            else:
                found[parameter] = host_buffer(values.to(bench.torch_dtype))
        return found
