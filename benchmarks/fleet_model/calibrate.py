"""The model held to the measurement of `python -m benchmarks fleet`: fitted at one load, two are foretold.

Fitted is one number: by how much two replicas slow each other on the one processor they share. All else is measured:
seconds of requests that have the fleet for themselves, and of them those in which the worker draws. The model meets the
same requests at the same times as the fleet did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.fleet_model.simulate import Fleet, Seen, Service, Setup

FITTED = "0.9"
"""The load at which the model is fitted: both replicas are often at work there, and not always."""
_RANGE = (1.0, 4.0)  # of the slowdown: two replicas do not make each other faster
_ANSWERED, _REFUSED = 200, 429  # as the record has them, whatever a refusal's status
_ROUNDS = 30  # of bisection


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is compared.

    Attributes:
        rate: Pictures a second, over all slices up to the last answer of each.
        mean: Seconds of answered requests.
        p50: The same.
        p99: The same.
        refused: Share of requests.
    """

    rate: float
    mean: float
    p50: float
    p99: float
    refused: float

    @classmethod
    def of(cls, seconds: Sequence[float], refused: int, lasted: float) -> Figures:
        """Of all slices together.

        Args:
            seconds: Of each answered request.
            refused: Requests.
            lasted: Seconds of all slices.
        """
        p50, p99 = np.percentile(seconds, [50, 99])
        share = refused / (refused + len(seconds))
        return cls(
            rate=len(seconds) / lasted, mean=float(np.mean(seconds)), p50=float(p50), p99=float(p99), refused=share
        )


class Record:
    """What the fleet did.

    Args:
        path: The file that the measurement left.
    """

    def __init__(self, path: Path) -> None:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.kinds, self.steps, self.loads = facts["kinds"], facts["steps"], facts["loads"]
        self.setup = Setup(replicas=facts["replicas"], shapes=len(self.kinds), room=facts["room"], slack=0)
        # Of each round by itself, as its slices are: the machine does other work, at one time more than at another.
        rounds = len(next(iter(self.loads.values())))
        self.work = _by_round(facts["work"], rounds)
        # What a request takes besides is small, but for a few that wait for something: of all rounds, so that those few
        # count as what they are.
        self.overhead = np.median(np.maximum(0.0, np.subtract(facts["alone"], facts["work"])), axis=1)

    def measured(self, load: str) -> Figures:
        """What was measured at a load.

        Raises:
            ValueError: If requests failed or were lost: the model knows neither, and figures without them are better
                than what clients saw.
        """
        slices = self.loads[load]
        seconds = [each[3] for one in slices for each in one if each[2] == _ANSWERED]
        refused = sum(each[2] == _REFUSED for one in slices for each in one)
        others = [each[2] for one in slices for each in one if each[2] not in (_ANSWERED, _REFUSED)]
        if others:
            lost = others.count(0)
            raise ValueError(
                f"at {load} of capacity {len(others) - lost} requests failed and {lost} were lost, which the model has "
                "no place for; find out why, and measure again: python -m benchmarks fleet"
            )
        lasted = sum(max((each[0] + each[3] for each in one if each[2] == _ANSWERED), default=0.0) for one in slices)
        return Figures.of(seconds, refused, lasted)

    def foretold(self, load: str, slowdown: float) -> Figures:
        """What the model says of the same requests.

        Args:
            load: Which.
            slowdown: Of two replicas at work.
        """
        seen = []
        for number, one in enumerate(self.loads[load]):
            planned = [(each[0], int(each[1])) for each in one]
            seen.append(Fleet(self.setup, self._service(number, slowdown)).run(planned))
        return figures(seen)

    def _service(self, number: int, slowdown: float) -> Service:
        work = self.work[:, number]
        return Service(
            parts=lambda shape, _: [float(work[shape]) / self.steps[shape]] * self.steps[shape],
            overhead=lambda shape: float(self.overhead[shape]),
            slowdown=lambda working: slowdown if working > 1 else 1.0,
        )


def _by_round(seconds: Sequence[Sequence[float]], rounds: int) -> npt.NDArray[np.float64]:
    """[kinds, rounds] of what was measured of each kind, round after round."""
    return np.median(np.asarray(seconds).reshape(len(seconds), rounds, -1), axis=2)


def figures(slices: Sequence[Seen]) -> Figures:
    """Of simulated slices."""
    seconds = [each for one in slices for each in one.seconds]
    lasted = sum(max(np.add(one.begun, one.seconds), default=0.0) for one in slices)
    return Figures.of(seconds, sum(len(one.refused) for one in slices), lasted)


def fitted(record: Record) -> float:
    """The slowdown with which the model's mean latency is the measured one at `FITTED`.

    Raises:
        ValueError: If there is none: the record is of a machine that did other work.
    """
    wanted = record.measured(FITTED).mean

    def off(slowdown: float) -> float:
        return record.foretold(FITTED, slowdown).mean - wanted

    low, high = (off(each) for each in _RANGE)
    if not low < 0 < high:
        raise ValueError(
            f"the mean latency at {FITTED}, {wanted:.2f} s, is none of the model's, from {wanted + low:.2f} to "
            f"{wanted + high:.2f} s; measure again on a machine that does nothing else: python -m benchmarks fleet"
        )
    return bisected(off, *_RANGE)


def bisected(difference: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses zero, or the end that is nearest to it.

    Args:
        difference: The function.
        low: Where it should be negative.
        high: Where it should be positive.
    """
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if difference(middle) < 0 else (low, middle)
    return (low + high) / 2


def errors(measured: Figures, foretold: Figures) -> Mapping[str, float]:
    """By how much each figure is off, as a share of the measured one; of refusals the difference of shares."""
    off = {name: getattr(foretold, name) / getattr(measured, name) - 1 for name in ("rate", "mean", "p50", "p99")}
    return off | {"refused": foretold.refused - measured.refused}
