"""How many GPUs a rate of requests needs, and what its clients see: derived from the model and from derived seconds."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.fleet_model import gpus
from benchmarks.fleet_model.simulate import Fleet, Seen, Service, Setup
from benchmarks.measure import Row, Timing

RATES = (10, 1_000, 100_000)
"""Requests a minute."""
PROMISE = 5.0
"""Seconds within which 99 of 100 requests are to be answered; the largest picture takes 1.3 s."""
_WARM = 10.0  # seconds before what is looked at
_LASTS = 45.0  # seconds that are looked at, at least
_FULL = 0.99  # share of what GPUs could do beyond which nothing is planned: a minute does not show how queues grow
_LEAST = 20_000  # requests that are looked at: a queue of a busy fleet takes its time to grow


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What can be chosen.

    Attributes:
        together: Pictures that share a batch at most.
        window: Seconds that a replica waits for company.
        hits: Share of prompts whose features are kept.
        room: Requests that a replica has at most.
        slack: Of the router, see `max_zimage.serving.ray_serve.shapes.ranked`.
    """

    together: int = 4
    window: float = 0.0
    hits: float = 0.0
    room: int = 72
    slack: int = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a fleet does at a rate.

    Attributes:
        replicas: GPUs.
        rate: Pictures a second.
        p50: Seconds.
        p99: Seconds.
        busy: Work that came, as a share of what the GPUs could do.
        batch: Pictures of a batch, on average.
        refused: Requests.
        seconds: Of each answered request.
    """

    replicas: int
    rate: float
    p50: float
    p99: float
    busy: float
    batch: float
    refused: int
    seconds: Sequence[float]


def planned(a_minute: float, seconds: float, seed: int = 0) -> list[tuple[float, int]]:
    """Requests of the mix, by a Poisson process."""
    chance = random.Random(seed)
    shares = [size.share for size in gpus.MIX]
    found, at = [], 0.0
    while (at := at + chance.expovariate(a_minute / 60)) < seconds:
        found.append((at, chance.choices(range(len(shares)), shares)[0]))
    return found


def simulated(a_minute: float, replicas: int, policy: Policy) -> Outcome:
    """What so many GPUs do.

    Args:
        a_minute: Requests.
        replicas: GPUs.
        policy: How they are run.
    """
    lasts = _WARM + max(_LASTS, 60 * _LEAST / a_minute)
    setup = Setup(
        replicas=replicas,
        shapes=len(gpus.MIX),
        room=policy.room,
        together=policy.together,
        window=policy.window,
        slack=policy.slack,
    )
    service = Service(parts=gpus.parts, encode=gpus.ENCODE, hits=policy.hits)
    seen = Fleet(setup, service).run(planned(a_minute, lasts))
    return _outcome(seen, replicas, lasts)


def _outcome(seen: Seen, replicas: int, lasts: float) -> Outcome:
    begun, taken = np.array(seen.begun), np.array(seen.seconds)
    looked_at = taken[begun > _WARM]
    ended = begun + taken
    p50, p99 = np.percentile(looked_at, [50, 99])
    return Outcome(
        replicas=replicas,
        rate=float(np.sum((ended > _WARM) & (ended <= lasts)) / (lasts - _WARM)),
        p50=float(p50),
        p99=float(p99),
        busy=seen.work / (replicas * lasts),
        batch=float(np.mean(seen.batches)),
        refused=sum(at > _WARM for at in seen.refused),
        seconds=looked_at.tolist(),
    )


def needed(a_minute: float, policy: Policy, promise: float = PROMISE) -> Outcome:
    """The fewest GPUs that keep the promise and refuse nobody, within one in fifty of them.

    Args:
        a_minute: Requests.
        policy: How they are run.
        promise: Seconds of p99.
    """
    least = math.ceil(a_minute / 60 * gpus.mean_seconds(policy.hits) / _FULL)
    found = simulated(a_minute, least, policy)
    step = max(1, least // 50)
    while found.p99 > promise or found.refused:
        found = simulated(a_minute, found.replicas + step, policy)
    return found


def rows() -> list[Row]:
    """The plan as a table: each rate as it is, and then with one thing changed."""
    plain = Policy()
    cases = {
        "up to 4 pictures share a batch": plain,
        "each picture by itself": replace(plain, together=1),
        "a window of 0.2 s for company": replace(plain, window=0.2),
        "half of the prompts are known": replace(plain, hits=0.5),
        "shapes kept together, slack 4": replace(plain, slack=4),
    }
    return [_row(a_minute, name, needed(a_minute, policy)) for a_minute in RATES for name, policy in cases.items()]


def _row(a_minute: int, name: str, found: Outcome) -> Row:
    note = (
        f"GPUs {found.replicas}, {found.rate:.1f} pictures/s, p99 {found.p99:.2f} s, busy {found.busy:.0%}, "
        f"{found.batch:.2f} pictures a batch"
    )
    return Row(
        case=f"{a_minute:,} requests a minute",
        variant=name,
        dtype="bfloat16",
        sizes="derived, not measured",
        timing=Timing.of(found.seconds),
        note=note,
    )
