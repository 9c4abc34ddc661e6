"""What a profile tells: one row a part, whose seconds add up to the run's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from max_zimage.compile.registry import find_entry
from max_zimage.compile.work import Work
from max_zimage.profiling.isolated import IsolatedGraph
from max_zimage.profiling.matmul_rate import Product
from max_zimage.profiling.recorder import Call, Memory, Recorder, Run


def label_of(graph: str) -> str:
    """What people call a graph, or its name."""
    entry = find_entry(graph)
    return graph if entry is None else entry.label


Count = Callable[[str, Sequence[tuple[int, ...]]], Work | None]
"""Counts the work of a call; see `max_zimage.compile.registry.count`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One part of a run, or all of it.

    Attributes:
        part: The graph's name, or what the host does.
        calls: Compiled calls; 0 for the host.
        seconds: Of all calls together.
        total: Seconds of the run.
        work: Of all calls together; None where it is not counted, or where the seconds are not those of the work.
        rate: Floating-point operations a second of the machine's matrix product.
        memory: What its calls held; None where it was not measured.
    """

    part: str
    calls: int
    seconds: float
    total: float
    work: Work | None
    rate: float
    memory: Memory | None

    @property
    def flop_rate(self) -> float | None:
        """Floating-point operations a second; None where there are none to speak of."""
        return self.work.flops / self.seconds if self.work and self.work.flops else None

    @property
    def byte_rate(self) -> float | None:
        """Bytes a second that had to move, at least."""
        return self.work.nbytes / self.seconds if self.work else None

    def facts(self) -> dict[str, Any]:
        """For JSON: seconds, bytes and shares as they are, rates in 10^12 and 10^9 a second."""
        flops, moved = self.flop_rate, self.byte_rate
        return {
            "part": self.part,
            "label": label_of(self.part),
            "calls": self.calls,
            "seconds": self.seconds,
            "average_seconds": self.seconds / self.calls if self.calls else None,
            "share": self.seconds / self.total,
            "flops": self.work.flops if self.work else None,
            "bytes": self.work.nbytes if self.work else None,
            "tflop_per_s": None if flops is None else flops / 1e12,
            "matmul_share": None if flops is None else flops / self.rate,
            "gb_per_s": None if moved is None else moved / 1e9,
            "peak_bytes": self.memory.peak if self.memory else None,
            "risen_bytes": self.memory.risen if self.memory else None,
        }


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything that was measured.

    Attributes:
        conditions: What was run, on what.
        recorder: The runs.
        count: Counts the work of a call.
        product: The matrix product that rates are compared with.
        rate: Floating-point operations a second in it.
        load_seconds: Of loading the weights, and of compiling or finding the graphs.
        compiled: Modules that were compiled then; 0 where all came from disk.
        alone: Parts of a step, measured alone.
    """

    conditions: Mapping[str, Any]
    recorder: Recorder
    count: Count
    product: Product
    rate: float
    load_seconds: float
    compiled: int
    alone: Sequence[IsolatedGraph]

    def rows(self) -> list[Row]:
        """The parts of the run in the middle, then the run: seconds of the parts add up to it."""
        run = self.recorder.middle
        names = dict.fromkeys(call.name for call in run.calls)
        parts = [self._row(name, [call for call in run.calls if call.name == name], run) for name in names]
        parts += (self._made(label, 0, seconds, run, None, None) for label, seconds in run.host_seconds().items())
        works = [work for work in (self._work(call) for call in run.calls) if work]
        peaks = [memory.peak for memory in self.recorder.memory.values()]
        risen = [memory.risen for memory in self.recorder.memory.values()]
        memory = Memory(peak=max(peaks), risen=max(risen)) if peaks else None
        whole = sum(works, start=Work()) if works else None
        return [*parts, self._made("total", len(run.calls), run.seconds, run, whole, memory)]

    def steps(self) -> list[dict[str, Any]]:
        """Seconds of each denoising step of that run, and of the graphs that were called in it."""
        run, steps = self.recorder.middle, []
        for number, step in enumerate(run.steps, start=1):
            inside: dict[str, float] = {}
            for call in run.calls:
                if step.begin <= call.begin < step.end:
                    inside[call.name] = inside.get(call.name, 0.0) + call.seconds
            steps.append({"step": number, "seconds": step.seconds, "graphs": inside})
        return steps

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        runs = self.recorder.measured
        return {
            **self.conditions,
            "mode": "synchronized" if self.recorder.synchronize else "unsynchronized",
            "seconds": {
                "load": self.load_seconds,
                "first": self.recorder.runs[0].seconds,
                "total": self.recorder.middle.seconds,
                "fastest": runs[0].seconds,
                "slowest": runs[-1].seconds,
            },
            "repeats": len(runs),
            "compiled": self.compiled,
            "matmul": {**vars(self.product), "tflop_per_s": self.rate / 1e12},
            "parts": [row.facts() for row in self.rows()],
            "steps": self.steps(),
            "alone": [self._alone(each) for each in self.alone],
            "memory": self.recorder.meter.meaning,
        }

    def _row(self, name: str, calls: Sequence[Call], run: Run) -> Row:
        # Where calls are only queued, their seconds are the host's, and no rate of the device can be told from them.
        timed = self.recorder.synchronize or self.recorder.device.is_host
        works = [self._work(call) for call in calls] if timed else []
        known = [work for work in works if work is not None]
        work = sum(known, start=Work()) if known and len(known) == len(calls) else None
        seconds = sum(call.seconds for call in calls)
        return self._made(name, len(calls), seconds, run, work, self.recorder.memory.get(name))

    def _made(self, part: str, calls: int, seconds: float, run: Run, work: Work | None, memory: Memory | None) -> Row:
        return Row(part=part, calls=calls, seconds=seconds, total=run.seconds, work=work, rate=self.rate, memory=memory)

    def _work(self, call: Call) -> Work | None:
        return self.count(call.name, call.shapes)

    def _alone(self, each: IsolatedGraph) -> dict[str, Any]:
        work = self._work(each.call)
        return {
            "label": each.label,
            "graph": each.call.name,
            "seconds": each.call.seconds,
            "gb_per_s": work.nbytes / each.call.seconds / 1e9 if work else None,
        }
