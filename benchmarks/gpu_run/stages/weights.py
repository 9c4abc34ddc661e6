"""Whether models that are given the same weights share them on the card; see `benchmarks.shared_weights`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.compile import folder_of
from benchmarks.gpu_run.results import Row
from benchmarks.gpu_run.steps import Part
from benchmarks.shared_weights import findings


def parts(bench: Bench) -> list[Part]:
    """Every way that a device has."""
    return [Part(name="shared", seconds=15, measure=lambda: _measured(bench))]


def _measured(bench: Bench) -> Iterator[Row]:
    folder = folder_of(bench.work, small=bench.small)
    folder.mkdir(parents=True, exist_ok=True)
    for found in findings(bench.device, folder, small=bench.small):
        loaded = " and ".join(f"{taken:.0f}" for taken in found.loaded_mib)
        yield Row(
            case="models, of two, that follow when their weights are overwritten",
            variant=found.way.what,
            dtype="float32",
            sizes=f"{found.weights_mib:.0f} MiB",
            peak_mib=sum(found.loaded_mib),
            value=float(found.following),
            note=f"loading took {loaded} MiB, binding others {found.binding_ms:.1f} ms and {found.binding_mib:.0f} MiB",
        )
