"""A job on a Ray cluster: Ray Data hands units to actors, each of which holds one pipeline.

Ray restarts actors and tries tasks again, both so often and no more: without bounds a picture over which processes end
would be tried for ever. What is recorded decides what is done, not what Ray says of it: a unit that Ray computes twice,
as it does when a node is lost that held its answer, is found to be recorded. Ray Data's own checkpoint would add a
second truth, and a job of its own to read it.

Reference: ray/data, `Dataset.map_batches`; `reference/scale-and-ux.md` sections 1 and 2.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np

from max_zimage.batch.drawing import Drawer, Drawing
from max_zimage.batch.extra import ray
from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.tries import TRIES, again, counted
from max_zimage.batch.work import JobError, Report, Unit
from max_zimage.progress import note

_WAVE = 4096  # units of one run of Ray Data, for which the actors load the model once
_RESTARTS = 8  # of one actor
_FRUITLESS = 3  # runs one after the other in which nothing was recorded and nothing begun
_PASSED_ON = ("MAX_ZIMAGE_", "MODULAR_", "HF_", "PYTHONPATH")
"""Beginnings of the names of variables that actors get from here."""


class RayDrawer:
    """The actor: it loads a pipeline once and draws a unit a call.

    Args:
        drawing: `Drawing`, pickled.
    """

    def __init__(self, drawing: bytes) -> None:
        found: Drawing = pickle.loads(drawing)
        self._drawer: Drawer = found.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Draw the units of a batch of Ray's: pickled units in, pickled reports out."""
        reports = [pickle.dumps(self._drawer(pickle.loads(unit))) for unit in batch["unit"]]
        return {"report": np.array(reports, dtype=object)}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How a cluster is used.

    Attributes:
        address: As `ray.init` takes it: "auto", "local", HOST:PORT or ray://HOST:PORT.
        workers: Actors; 0 for one a GPU, or where there is none one a node.
    """

    address: str
    workers: int = 0


class RayData:
    """Draws with actors of a cluster; to be left like a file, by `with`.

    Args:
        drawing: What each of them loads.
        cluster: Where.

    Raises:
        ValueError: If Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, drawing: Drawing, cluster: Cluster) -> None:
        self._drawing, self._cluster, self._ray = drawing, cluster, ray()
        variables = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        try:
            self._ray.init(address=cluster.address, runtime_env={"env_vars": variables}, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"--ray {cluster.address}: {error}") from error
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False

    def __enter__(self) -> RayData:
        """Return this."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Leave the cluster, whose actors of this job end."""
        self._ray.shutdown()

    def run(self, units: Iterator[Unit], book: RecordBook) -> Iterator[Report]:
        """Draw units, and report each when it is recorded; see `Local.run`.

        Raises:
            JobError: If the cluster has no place for an actor, or run after run ends before anything is done.
        """
        while wave := list(islice(units, _WAVE)):
            fruitless = 0
            while wave:
                seen = set[tuple[int, str]]()
                before = _begun(wave, book)
                try:
                    for report in self._drawn(wave):
                        if report.key not in seen:
                            seen.add(report.key)
                            yield report
                    why = "a unit without a report"
                except Exception as error:
                    why = _reason(error)
                    note(f"a run of Ray Data ended early: {why}; what is not recorded is tried again")
                left = [unit for unit in wave if unit.key not in seen]
                wave = []
                for unit in left:
                    more, ended = self._left(unit, why, book)
                    wave += more
                    if ended is not None:
                        yield ended
                fruitless = 0 if len(seen) or _begun(left, book) > before else fruitless + 1
                if wave and fruitless == _FRUITLESS:
                    raise JobError(f"{_FRUITLESS} runs of Ray Data ended before anything was drawn: {why}")

    def _left(self, unit: Unit, why: str, book: RecordBook) -> tuple[list[Unit], Report | None]:
        """What is to be done with a unit that Ray has not reported."""
        if (report := book.report(unit)) is not None:
            return [], report
        tries = book.begun(unit.window)[unit.name]
        return again(counted(unit, tries), why, book) if tries else ([unit], None)

    def _drawn(self, wave: Sequence[Unit]) -> Iterator[Report]:
        """One run of Ray Data."""
        data, gpus = self._ray.data, int(self._ray.cluster_resources().get("GPU", 0))
        count = min(self._workers(gpus), len(wave))
        rows = data.from_items([{"unit": pickle.dumps(unit)} for unit in wave], override_num_blocks=len(wave))
        drawn = rows.map_batches(
            RayDrawer,
            fn_constructor_args=(pickle.dumps(self._drawing),),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            num_gpus=1 if gpus else 0,
            num_cpus=1,
            ray_remote_args_fn=_bounds,
        )
        for row in drawn.iter_rows():
            yield pickle.loads(row["report"])

    def _workers(self, gpus: int) -> int:
        if self._cluster.workers:
            return self._cluster.workers
        nodes = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not gpus and not nodes:
            raise JobError("no node of the cluster has a CPU for an actor; add one, or raise its --num-cpus")
        return gpus or len(nodes)


def _bounds() -> dict[str, int]:
    """How often Ray starts an actor again, and tries its call again, of itself: without end if nothing is said."""
    return {"max_restarts": _RESTARTS, "max_task_retries": TRIES - 1}


def _begun(units: Sequence[Unit], book: RecordBook) -> int:
    """How often units were begun, all together."""
    windows = {window: book.begun(window) for window in {unit.window for unit in units}}
    return sum(windows[unit.window][unit.name] for unit in units)


def _reason(error: BaseException) -> str:
    """The last thing that Ray says of an error: before it stands where it came about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
