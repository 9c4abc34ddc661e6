"""Whether two models that are given the same weights share them, and what it costs to give models other weights.

    python -m benchmarks.shared_weights [--small] [--folder DIR]

A model that still gives the old numbers after its weights were overwritten has a copy of its own. That tells more than
memory does: MAX keeps some in reserve and gives from it. Binding is loading a compiled model once more, with weights of
the same size that are others. With `--folder` compiled models are taken from a folder, and
put there if they are not: a machine that has no compiler can be given them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from max.driver import CPU, Accelerator, Buffer, Device, accelerator_count
from max.dtype import DType
from max.engine import CompiledModel, InferenceSession, Model
from max.graph import DeviceRef, Graph, Module, TensorType, ops

_COLUMNS = 1024
ROWS, _SMALL = 2**18, 2**14  # 1 GiB and 64 MiB
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Way:
    """How two models come by their weights.

    Attributes:
        name: In a file's name.
        what: In a report.
        on_device: Whether the graphs read weights on the device; else on the host, from where a GPU's copy them.
        together: Whether both graphs are one module, and are loaded together.
    """

    name: str
    what: str
    on_device: bool
    together: bool


WAYS = (
    Way(name="host", what="given on the host, one module each", on_device=False, together=False),
    Way(name="host_together", what="given on the host, one module of both", on_device=False, together=True),
    Way(name="device", what="given on the device, one module each", on_device=True, together=False),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found of one way.

    Attributes:
        way: Which.
        device: Where the models ran.
        weights_mib: Size of the weights.
        loaded_mib: What loading took, one number a model, or one for both of them.
        following: Models, of two, whose numbers changed with the weights.
        binding_ms: Milliseconds that it took to give the first model other weights.
        binding_mib: Memory that it took besides those weights, while the former model is there.
    """

    way: Way
    device: str
    weights_mib: float
    loaded_mib: tuple[float, ...]
    following: int
    binding_ms: float
    binding_mib: float

    @property
    def shared(self) -> bool:
        """Whether both models read the very weights that they were given."""
        return self.following == 2

    def __str__(self) -> str:
        """One line of a report."""
        loaded = " and ".join(f"{taken:.0f}" for taken in self.loaded_mib)
        return (
            f"{self.device}, {self.way.what}: {'shared' if self.shared else 'not shared'} ({self.following} of 2 "
            f"models follow), loading took {loaded} MiB, the weights have {self.weights_mib:.0f}; binding others took "
            f"{self.binding_ms:.1f} ms and {self.binding_mib:.0f} MiB"
        )


def findings(device: Device, folder: Path, *, small: bool = False) -> Iterator[Finding]:
    """Measure every way that the device has.

    Args:
        device: Runs the models.
        folder: Has compiled models, or gets them.
        small: With small weights.
    """
    session = InferenceSession(devices=[device])
    for way in WAYS:
        if not (device.is_host and way.on_device):  # there the host is the device
            yield _found(session, device, way, folder, _SMALL if small else ROWS)


def _found(session: InferenceSession, device: Device, way: Way, folder: Path, rows: int) -> Finding:
    paths = files(session, device, way, folder, rows)
    weights = Buffer.from_numpy(np.ones((rows, _COLUMNS), np.float32))
    weights = weights.to(device) if way.on_device else weights
    models: list[Model] = []
    used = [_used(device)]
    compiled = [session.compile(path) for path in paths]
    for each in compiled:
        models += session.init_all(each, weights_registry={"weights": weights}).values()
        device.synchronize()
        used.append(_used(device))
    row = Buffer.from_numpy(np.array([rows - 1], np.int32)).to(device)
    before = [float(model.execute(row)[0].to(CPU()).to_numpy()[0, 0]) for model in models]
    weights[rows - 1 :, :].inplace_copy_from(twos := Buffer.from_numpy(np.full((1, _COLUMNS), 2, np.float32)))
    weights.device.synchronize()
    after = [float(model.execute(row)[0].to(CPU()).to_numpy()[0, 0]) for model in models]
    del twos
    binding_ms, binding_mib = _bound(session, device, compiled[0], weights, row)
    assert before == [1, 1], before
    assert set(after) <= {1, 2}, after
    taken = tuple((now - then) / _MIB for then, now in pairwise(used))
    return Finding(
        way=way,
        device=device.label,
        weights_mib=rows * _COLUMNS * 4 / _MIB,
        loaded_mib=taken,
        following=sum(value == 2 for value in after),
        binding_ms=binding_ms,
        binding_mib=binding_mib,
    )


def _bound(
    session: InferenceSession, device: Device, compiled: CompiledModel, like: Buffer, row: Buffer
) -> tuple[float, float]:
    """Milliseconds and MiB that a compiled model takes to be given other weights."""
    threes = Buffer.from_numpy(np.full(tuple(map(int, like.shape)), 3, np.float32)).to(like.device)
    device.synchronize()
    before, begin = _used(device), time.perf_counter()
    model = next(iter(session.init_all(compiled, weights_registry={"weights": threes}).values()))
    device.synchronize()
    taken = time.perf_counter() - begin, _used(device) - before
    assert float(model.execute(row)[0].to(CPU()).to_numpy()[0, 0]) == 3
    return taken[0] * 1e3, taken[1] / _MIB


def files(session: InferenceSession, device: Device, way: Way, folder: Path, rows: int) -> list[Path]:
    """The compiled models of a way, one a module: those in a folder, or made and put there."""
    modules = [["first", "second"]] if way.together else [["first"], ["second"]]
    paths = [folder / f"shared_weights-{device.label}-{rows}-{way.name}-{'-'.join(names)}.mef" for names in modules]
    for path, names in zip(paths, modules, strict=True):
        if not path.exists():
            session.compile(_module(names, device, way, rows)).export_mef(path)
    return paths


def _module(names: Sequence[str], device: Device, way: Way, rows: int) -> Module:
    """Graphs that give one row of the weights."""
    together, place = Module(), DeviceRef.from_device(device)
    for name in names:
        with Graph(name, input_types=[TensorType(DType.int32, [1], place)], module=together) as graph:
            home = place if way.on_device else DeviceRef.CPU()
            weights = ops.constant_external("weights", TensorType(DType.float32, [rows, _COLUMNS], home))
            graph.output(ops.gather(weights.to(place), graph.inputs[0].tensor, axis=0))
    return together


def _used(device: Device) -> int:
    """Bytes of this process, or of the device as its driver has it."""
    if device.is_host:
        return int(psutil.Process().memory_info().rss)
    stats = device.stats
    return int(stats["total_memory"]) - int(stats["free_memory"])


def main() -> None:
    """Print what is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--small", action="store_true", help="weights of 64 MiB, not 1 GiB")
    parser.add_argument("--folder", type=Path, help="of compiled models")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        device = Accelerator() if accelerator_count() else CPU()
        for finding in findings(device, arguments.folder or Path(scratch), small=arguments.small):
            print(finding, flush=True)


if __name__ == "__main__":
    main()
