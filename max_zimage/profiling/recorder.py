"""Runs as they were: when each compiled call and each step began and ended, and the memory that each graph held."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from max.driver import Buffer, Device

from max_zimage.compile.observer import observed_by
from max_zimage.profiling.peak_memory import MemoryMeter, meter
from max_zimage.progress import Silent, shown_by, stage

LOOP = "Denoising"
"""The stage of progress whose parts are the steps."""

Kind = Literal["first", "warm-up", "measured"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Something with a beginning and an end, in seconds of `time.perf_counter`."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(frozen=True, kw_only=True)
class Call(Span):
    """A compiled call; `shapes` are those of its inputs."""

    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Run(Span):
    """One run; its name is its kind.

    Attributes:
        calls: In order.
        steps: Denoising steps; from the end of one to the end of the next, the first one from where the loop begins.
    """

    calls: tuple[Call, ...]
    steps: tuple[Span, ...]

    def host_seconds(self) -> dict[str, float]:
        """Seconds outside compiled calls: before the steps, between them and after them; "host" where there are none.

        Together with the calls they are all of the run.
        """
        if not self.steps:
            return {"host": self._outside(self.begin, self.end)}
        first, last = self.steps[0].begin, self.steps[-1].end
        return {
            "host before the steps": self._outside(self.begin, first),
            "host between the steps": self._outside(first, last),
            "host after the steps": self._outside(last, self.end),
        }

    def _outside(self, begin: float, end: float) -> float:
        return end - begin - sum(call.seconds for call in self.calls if begin <= call.begin < end)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a graph's calls held, in bytes.

    Attributes:
        peak: At most.
        risen: Of that, above what was held before the call. What a process has freed it may still hold, so that a graph
            that runs after a hungrier one can do without.
    """

    peak: int
    risen: int


@dataclass
class Recorder:
    """Observer and progress display of the runs of a profile.

    Args:
        device: Where the graphs run.
        synchronize: Whether to wait for the device around every call: its seconds are then the device's. Without, they
            are what the call costs the host, and only the end of a run is waited for.
    """

    device: Device
    synchronize: bool
    runs: list[Run] = field(default_factory=list)
    memory: dict[str, Memory] = field(default_factory=dict)
    meter: MemoryMeter = field(init=False)
    _calls: list[Call] = field(default_factory=list)
    _steps: list[Span] = field(default_factory=list)
    _in_loop: bool = False
    _since: float = 0.0
    _metered: bool = False

    def __post_init__(self) -> None:
        self.meter = meter(self.device)

    def profile(self, work: Callable[[], object], *, warmups: int, repeats: int, label: str = "Profiling") -> None:
        """Run once for memory, compiling and first touches; then to warm up; then to be measured.

        Progress is shown between the runs only, so that telling of steps takes no part in them.

        Args:
            work: One run.
            warmups: Runs that are left aside.
            repeats: Runs that count, at least one.
            label: What progress calls it.
        """
        kinds: list[Kind] = ["first", *["warm-up"] * warmups, *["measured"] * repeats]  # type: ignore[list-item]
        with stage(label, len(kinds)) as shown:
            for kind in kinds:
                self.runs.append(self._run(kind, work))
                shown.advance(f"{kind}: {self.runs[-1].seconds:.2f} s")

    @property
    def measured(self) -> list[Run]:
        """The runs that count, from the fastest to the slowest."""
        return sorted((run for run in self.runs if run.name == "measured"), key=lambda run: run.seconds)

    @property
    def middle(self) -> Run:
        """The run in the middle of those, which is the one told of: parts of one run add up, medians do not."""
        return self.measured[(len(self.measured) - 1) // 2]

    def call(self, name: str, inputs: Sequence[Buffer], run: Callable[[], list[Buffer]]) -> list[Buffer]:
        """Run a graph and take its time; see `max_zimage.compile.observer.Observer`."""
        held = self.meter.begin() if self._metered else None
        begin = time.perf_counter()
        outputs = run()
        if self.synchronize:
            self.device.synchronize()
        end = time.perf_counter()
        if self._metered:
            self._remember(name, held)
        shapes = tuple(tuple(map(int, given.shape)) for given in inputs)
        self._calls.append(Call(name=name, begin=begin, end=end, shapes=shapes))
        return outputs

    def begin(self, stage: str, total: int) -> None:
        """The loop begins, or another stage does; see `max_zimage.progress.Progress`."""
        self._in_loop, self._since = stage == LOOP, time.perf_counter()

    def advance(self, label: str) -> None:
        """A step is done."""
        if self._in_loop:
            now = time.perf_counter()
            self._steps.append(Span(name=label, begin=self._since, end=now))
            self._since = now

    def end(self) -> None:
        """The loop has ended."""
        self._in_loop = False

    def note(self, text: str) -> None:
        """Log it: nothing is shown while time is measured."""
        Silent().note(text)

    def _run(self, kind: Kind, work: Callable[[], object]) -> Run:
        self._calls, self._steps, self._metered = [], [], kind == "first"
        self.device.synchronize()
        with observed_by(self), shown_by(self):
            begin = time.perf_counter()
            work()
            self.device.synchronize()
            end = time.perf_counter()
        return Run(name=kind, begin=begin, end=end, calls=tuple(self._calls), steps=tuple(self._steps))

    def _remember(self, name: str, held: int | None) -> None:
        peak = self.meter.end()
        if held is None or peak is None:
            return
        before = self.memory.get(name, Memory(peak=0, risen=0))
        self.memory[name] = Memory(peak=max(before.peak, peak), risen=max(before.risen, peak - held))
