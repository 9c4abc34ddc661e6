"""Two replicas on Ray Serve under open-loop load: errors, latency, memory, and one of them killed.

Loads take turns in slices, so that a machine that grows slower does so for all of them; between two slices all answers
are waited for. Requests come by a Poisson process whose seed is kept: `benchmarks.fleet_model` meets the same ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.fleet_load import KINDS, Told, arrivals, closed_loop, counted, percentiles, sent
from benchmarks.measure import RESULTS, Row, Timing
from tests.references.fleets import LocalFleet

QUEUE = 4
"""Requests that may wait at each replica: few, so that overload is refused within the time of a measurement."""
IN_WORKER = 2
"""Requests that a replica's worker has at a time, with one picture a batch."""
LOADS = (0.5, 0.9, 1.5)
RECORD = RESULTS / "fleet-requests.json"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How long is measured.

    Attributes:
        seconds: Of each load, in slices.
        slice: Seconds of one slice.
        alone: Requests of each kind, one at a time, for each round.
        capacity: Seconds in which the capacity is found, anew for each round.
        rounds: In which all loads take their turn, at least: one would show nothing of how the machine changes.
    """

    seconds: float
    slice: float
    alone: int
    capacity: float
    rounds: int


FULL = Setting(seconds=300.0, slice=30.0, alone=2, capacity=20.0, rounds=3)
QUICK = Setting(seconds=4.0, slice=4.0, alone=1, capacity=4.0, rounds=1)


@dataclass
class Measured:
    """What was seen.

    Attributes:
        alone: Kind -> seconds of requests that had the fleet for themselves.
        work: Kind -> seconds of them that the worker drew.
        slices: Load -> what became of the requests of each slice.
        capacities: Pictures a second, of each round.
        memory: MiB after each round.
    """

    alone: dict[int, list[float]]
    work: dict[int, list[float]]
    slices: dict[float, list[list[Told]]]
    capacities: list[float]
    memory: list[float]


def rows(setting: Setting, repeats: int, seconds: float | None = None) -> list[Row]:
    """Measure, and keep every request for the model.

    Args:
        setting: How long.
        repeats: Not so many, but as `setting` says; 1 for a look, which leaves no record.
        seconds: Of each load in place of the setting's.
    """
    lasts = seconds or setting.seconds
    rounds = max(setting.rounds, round(lasts / setting.slice))
    with tempfile.TemporaryDirectory(prefix="mz-fleet-", dir="/tmp") as folder:
        fleet = LocalFleet(Path(folder), ["--max-queue", str(QUEUE), "--batch-pictures", "1"])
        with fleet.server:
            before = fleet.processes()
            url = fleet.server.url
            for kind in range(len(KINDS)):
                asyncio.run(sent(url, [(0.0, kind), (0.0, kind)]))
            found = _rounds(fleet, setting, rounds)
            killed = _killed(fleet, max(setting.slice, lasts / 5), found.capacities[-1] / 2)
        left = [each for each in before if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    if repeats > 1:
        RECORD.write_text(record(found), encoding="utf-8")
    return [*_alone(found), *_loads(found), killed, _memory(found, len(left))]


def _rounds(fleet: LocalFleet, setting: Setting, rounds: int) -> Measured:
    kinds = range(len(KINDS))
    found = Measured({kind: [] for kind in kinds}, {kind: [] for kind in kinds}, {load: [] for load in LOADS}, [], [])
    for number in range(rounds):
        capacity = asyncio.run(closed_loop(fleet.server.url, 6, setting.capacity, number))
        found.capacities.append(capacity)
        for kind in kinds:
            for _ in range(setting.alone):
                before = _drawing(fleet)
                (told,) = asyncio.run(sent(fleet.server.url, [(0.0, kind)]))
                found.alone[kind].append(told.seconds)
                found.work[kind].append(_drawing(fleet) - before)
        for load in LOADS:
            planned = arrivals(load * capacity, setting.slice, seed=number)
            found.slices[load].append(asyncio.run(sent(fleet.server.url, planned)))
        found.memory.append(fleet.resident())
    return found


def _drawing(fleet: LocalFleet) -> float:
    """Seconds that the workers have spent on pictures: captions, steps and decoding."""
    return fleet.server.metric("zimage_stage_seconds_sum")


def _killed(fleet: LocalFleet, seconds: float, rate: float) -> Row:
    """Kill a replica in the middle of its work, and see what becomes of all requests, and when there are two again."""
    back = float("nan")

    async def kill() -> None:
        nonlocal back
        await asyncio.sleep(seconds / 3)
        victim = fleet.replicas()[0]
        os.kill(victim.pid, signal.SIGKILL)
        begin = time.perf_counter()
        while await asyncio.to_thread(fleet.serving) == 2 and time.perf_counter() < begin + 20:
            await asyncio.sleep(0.2)
        while await asyncio.to_thread(fleet.serving) < 2 and time.perf_counter() < begin + 300:
            await asyncio.sleep(0.5)
        back = time.perf_counter() - begin

    told = asyncio.run(sent(fleet.server.url, arrivals(rate, seconds, seed=99), kill))
    return Row(
        case="0.5 of capacity, a replica killed",
        variant="SIGKILL after a third of the time",
        dtype="float32",
        sizes="",
        timing=_timing(told),
        note=f"{_words(told)}; two replicas again after {back:.0f} s",
    )


def _alone(found: Measured) -> list[Row]:
    return [
        Row(
            case="one request at a time",
            variant=KINDS[kind].name,
            dtype="float32",
            sizes="",
            timing=Timing.of(seconds),
            note=f"of which the worker draws {np.median(found.work[kind]):.3f} s",
        )
        for kind, seconds in found.alone.items()
    ]


def _loads(found: Measured) -> list[Row]:
    made = []
    for load, slices in found.slices.items():
        told = [each for one in slices for each in one]
        capacities = ", ".join(f"{each:.2f}" for each in found.capacities)
        note = f"{_words(told)}; {len(slices)} slices, at capacities of {capacities} pictures/s"
        made.append(
            Row(
                case=f"{load:g} of capacity",
                variant="open loop",
                dtype="float32",
                sizes="",
                timing=_timing(told),
                note=note,
            )
        )
    return made


def _memory(found: Measured, left: int) -> Row:
    memory = found.memory
    slope = float(np.polyfit(range(len(memory)), memory, 1)[0]) if len(memory) > 1 else 0.0
    note = f"after each round {', '.join(f'{each:.0f}' for each in memory)} MiB, {slope:+.1f} a round; "
    return Row(
        case="memory",
        variant="all processes, what each has for itself",
        dtype="float32",
        sizes="",
        peak_mib=max(memory),
        note=note + f"{left} processes left after the end",
    )


def _timing(told: Sequence[Told]) -> Timing | None:
    answered = [each.seconds for each in told if each.outcome == "answered"]
    return Timing.of(answered) if answered else None


def _words(told: Sequence[Told]) -> str:
    count = counted(told)
    p50, p99 = percentiles(told)
    said = f"{len(told)} requests: {', '.join(f'{number} {name}' for name, number in count.items())}"
    return f"{said}; p50 {p50:.2f} s, p99 {p99:.2f} s"


def record(found: Measured) -> str:
    """What the model reads, as JSON: times in seconds, requests as [at, kind, status, seconds]."""

    def rounded(told: Told) -> list[float]:
        return [round(told.at, 3), told.kind, told.status if told.outcome != "refused" else 429, round(told.seconds, 3)]

    facts: dict[str, Any] = {
        "kinds": [kind.name for kind in KINDS],
        "steps": [kind.steps for kind in KINDS],
        "replicas": 2,
        "room": QUEUE + IN_WORKER,
        "alone": [[round(each, 3) for each in found.alone[kind]] for kind in range(len(KINDS))],
        "work": [[round(each, 3) for each in found.work[kind]] for kind in range(len(KINDS))],
        "loads": {f"{load:g}": [[rounded(each) for each in one] for one in found.slices[load]] for load in LOADS},
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in facts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
