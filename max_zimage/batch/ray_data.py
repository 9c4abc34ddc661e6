"""A job on a Ray cluster: Ray Data hands units to actors, each of which holds one pipeline.

Ray restarts actors and tries tasks again, both so often and no more: without bounds a picture over which processes end
would be tried for ever. What is recorded decides what is done, not what Ray says of it: a unit that Ray computes twice,
as it does when a node is lost that held its answer, is found to be recorded. Ray Data's own checkpoint would add a
second truth, and a job of its own to read it.

Reference: ray/data, `Dataset.map_batches`.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from max_zimage.batch.drawing import Drawer, Drawing
from max_zimage.batch.extra import ray
from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.tries import TRIES, again, counted
from max_zimage.batch.work import JobError, Report, Unit
from max_zimage.host.processors import keep_to, share_of
from max_zimage.host.ray_clusters import before_ray, ray_cluster
from max_zimage.progress import note

_WAVE, _WAVE_BYTES = 4096, 64 * 2**20
"""Units of one run of Ray Data, for which the actors load the model once; fewer where they hold pictures."""
_OBJECTS = 512 * 2**20  # bytes of shared memory of a cluster of this machine
_VISIBLE = 60.0  # seconds in which a file shows up that another machine has written; file systems keep what they know
_RESTARTS = 8  # of one actor
_FRUITLESS = 3  # runs one after the other in which nothing was recorded and nothing begun
PASSED_ON = (
    *("MAX_ZIMAGE_CACHE", "MAX_ZIMAGE_DEVICE_GRAPHS", "MAX_ZIMAGE_DEVICE_WEIGHTS", "MAX_ZIMAGE_INNER_LOOP"),
    *("MAX_ZIMAGE_PYTORCH_ATTENTION_BACKEND", "MAX_ZIMAGE_QUANTIZE", "MAX_ZIMAGE_TEMPLATES_DIR"),
    *("MODULAR_CACHE_DIR", "MODULAR_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "PYTHONPATH"),
)
"""Variables that actors get from here: a cluster shows them to everybody, so none that may hold a key or a token."""


class RayDrawer:
    """The actor: it loads a pipeline once and draws a unit a call.

    Args:
        drawing: `Drawing`, pickled.
        folder: Where its relative paths begin; "" if it has none.
        actors: That share this machine's processors evenly.

    Raises:
        ValueError: If there is no such folder on this machine.
    """

    def __init__(self, drawing: bytes, folder: str, actors: int) -> None:
        keep_to(share_of(actors))
        if folder:
            try:
                os.chdir(folder)
            except OSError as error:
                message = f"{folder} is not on all nodes, and relative paths begin there; give absolute ones"
                raise ValueError(message) from error
        found: Drawing = pickle.loads(drawing)
        self._drawer: Drawer = found.load(_place())

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
        has_relative: Whether what actors load is named by relative paths.
    """

    address: str
    workers: int = 0
    has_relative: bool = False


class RayData:
    """Draws with actors of a cluster; to be left like a file, by `with`.

    Args:
        drawing: What each of them loads.
        cluster: Where.

    Raises:
        ValueError: If Ray is not installed.
    """

    def __init__(self, drawing: Drawing, cluster: Cluster) -> None:
        before_ray(cluster.address)
        self._drawing, self._cluster, self._ray = drawing, cluster, ray()
        self._stack, self._is_shared = ExitStack(), False

    def __enter__(self) -> RayData:
        """Join the cluster.

        Raises:
            ValueError: If it cannot be reached.
        """
        address = self._cluster.address
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        try:
            self._stack.enter_context(
                ray_cluster(
                    self._ray,
                    address,
                    processors=self._cluster.workers,
                    object_bytes=_OBJECTS,
                    runtime_env={"env_vars": variables},
                    log_to_driver=False,
                )
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"--ray {address}: {error}") from error
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Leave the cluster, whose actors of this job end."""
        self._stack.close()

    def run(self, units: Iterator[Unit], book: RecordBook) -> Iterator[Report]:
        """Draw units, and report each when it is recorded; see `Local.run`.

        Raises:
            JobError: If the cluster has no place for an actor, if run after run ends before anything is done, or if
                what actors record is not to be seen here.
        """
        for wave in waves(units):
            fruitless = 0
            while wave:
                seen = set[tuple[int, str]]()
                before = _begun(wave, book)
                try:
                    for report in self._drawn(wave):
                        if report.key not in seen:
                            self._check_shared(wave, report, book)
                            seen.add(report.key)
                            yield report
                    why = "a unit without a report"
                except JobError:
                    raise
                except Exception as error:
                    why = _reason(error)
                    note(f"a run of Ray Data ended early: {why}; what is not recorded is tried again")
                left = [unit for unit in wave if unit.key not in seen]
                wave = []
                tries = self._tries(left, book)
                for unit in left:
                    more, ended = self._left(unit, why, book, tries[unit.key])
                    wave += more
                    if ended is not None:
                        yield ended
                fruitless = 0 if len(seen) or _begun(left, book) > before else fruitless + 1
                if wave and fruitless == _FRUITLESS:
                    raise JobError(f"{_FRUITLESS} runs of Ray Data ended before anything was drawn: {why}")

    def _tries(self, units: Sequence[Unit], book: RecordBook) -> dict[tuple[int, str], int]:
        """How often each of them has ended its process; a window's marks are read once for all of its units."""
        if not units:
            return {}
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        ended = {window: book.ended(window, alive) for window in {unit.window for unit in units}}
        return {unit.key: ended[unit.window][unit.name] for unit in units}

    def _left(self, unit: Unit, why: str, book: RecordBook, tries: int) -> tuple[list[Unit], Report | None]:
        """What is to be done with a unit that Ray has not reported."""
        if (report := book.report(unit)) is not None:
            return [], report
        return again(counted(unit, tries), why, book) if tries else ([unit], None)

    def _drawn(self, wave: Sequence[Unit]) -> Iterator[Report]:
        """One run of Ray Data."""
        data, gpus = self._ray.data, int(self._ray.cluster_resources().get("GPU", 0))
        nodes = self._nodes()
        count = min(self._cluster.workers or gpus or nodes, len(wave))
        if not count:
            raise JobError("no node of the cluster has a CPU for an actor; add one, or raise its --num-cpus")
        together = 1 if gpus else -(-count // max(nodes, 1))
        folder = os.getcwd() if self._cluster.has_relative else ""
        rows = data.from_items([{"unit": pickle.dumps(unit)} for unit in wave], override_num_blocks=len(wave))
        drawn = rows.map_batches(
            RayDrawer,
            fn_constructor_args=(pickle.dumps(self._drawing), folder, together),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            num_gpus=1 if gpus else 0,
            num_cpus=1,
            ray_remote_args_fn=_bounds,
        )
        for row in drawn.iter_rows():
            yield pickle.loads(row["report"])

    def _check_shared(self, wave: Sequence[Unit], report: Report, book: RecordBook) -> None:
        """See that what an actor has recorded is here, of the first report.

        Raises:
            JobError: If it is not.
        """
        if self._is_shared:
            return
        names = {each.key: each for unit in wave for each in (unit, *unit.alone())}
        end = time.monotonic() + _VISIBLE
        while book.report(names[report.key]) is None:
            if time.monotonic() > end:
                raise JobError(
                    f"{book.output.url}: an actor has recorded pictures there, and they are not to be seen from here; "
                    "--output must be a folder that all nodes share, or a URL"
                )
            time.sleep(0.5)
        self._is_shared = True

    def _nodes(self) -> int:
        return sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in self._ray.nodes())


def waves(units: Iterator[Unit]) -> Iterator[list[Unit]]:
    """Units, so many at a time as one run of Ray Data has: it keeps all of them in memory."""
    wave, size = list[Unit](), 0
    for unit in units:
        wave.append(unit)
        size += len(pickle.dumps(unit))
        if len(wave) == _WAVE or size >= _WAVE_BYTES:
            yield wave
            wave, size = [], 0
    if wave:
        yield wave


def _place() -> str:
    """The node on which an actor is."""
    found: str = ray().get_runtime_context().get_node_id()
    return found


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
