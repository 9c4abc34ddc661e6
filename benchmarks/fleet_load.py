"""Load on a fleet: requests that come whether or not earlier ones are answered, and what became of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

TIMEOUT = 300.0
"""Seconds after which a request without an answer is lost."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a part of the requests asks for.

    Attributes:
        name: In tables.
        size: Pixels of each side.
        steps: Denoising steps.
        share: Of all requests.
    """

    name: str
    size: int
    steps: int
    share: float

    def body(self, seed: int) -> dict[str, Any]:
        """The request."""
        size = f"{self.size}x{self.size}"
        return {"prompt": "a red star on a blue background", "size": size, "steps": self.steps, "seed": seed}


KINDS = (
    Kind(name="128x128, 8 steps", size=128, steps=8, share=0.5),
    Kind(name="192x192, 8 steps", size=192, steps=8, share=0.3),
    Kind(name="256x256, 8 steps", size=256, steps=8, share=0.2),
)
"""Of the embedded model, which draws each within a second or two on two cores."""


@dataclass(frozen=True)
class Told:
    """What became of a request.

    Attributes:
        at: Seconds after the slice began when it was sent.
        kind: Its place in `KINDS`.
        status: Of the answer; 0 where there was none.
        seconds: To the whole answer.
        again: Whether it was refused for want of room, and told when to come again.
    """

    at: float
    kind: int
    status: int
    seconds: float
    again: bool

    @property
    def outcome(self) -> str:
        """answered, refused, failed or lost."""
        if self.status == 200:
            return "answered"
        if self.status in (429, 503) and self.again:
            return "refused"
        return "failed" if self.status else "lost"


def arrivals(rate: float, seconds: float, seed: int) -> list[tuple[float, int]]:
    """When requests come and of which kind, by a Poisson process.

    Args:
        rate: Requests a second.
        seconds: How long.
        seed: Of the draw.

    Returns:
        (seconds after the beginning, place in `KINDS`) for each, in order.
    """
    chance, found, at = random.Random(seed), [], 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        found.append((at, chance.choices(range(len(KINDS)), [kind.share for kind in KINDS])[0]))
    return found


async def sent(
    url: str, planned: Sequence[tuple[float, int]], meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> list[Told]:
    """Send requests at their times, and wait for all answers.

    Args:
        url: Of the fleet.
        planned: From `arrivals`.
        meanwhile: Done beside; None for nothing.

    Returns:
        What became of each, in the order of `planned`.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
        begin = time.perf_counter()

        async def one(number: int, at: float, kind: int) -> Told:
            await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
            return await asked(client, time.perf_counter() - begin, kind, number)

        tasks = [asyncio.create_task(one(number, *each)) for number, each in enumerate(planned)]
        beside = asyncio.create_task(meanwhile()) if meanwhile else None
        told = await asyncio.gather(*tasks)
        if beside is not None:
            await beside
    return list(told)


async def asked(client: httpx.AsyncClient, at: float, kind: int, seed: int) -> Told:
    """Send one request."""
    begin = time.perf_counter()
    status, again = 0, False
    try:
        answer = await client.post("/v1/images/generations", json=KINDS[kind].body(seed))
        status = answer.status_code
        # Where nobody serves, too, it is told when to come again; that is a failure of the fleet.
        again = "retry-after" in answer.headers and '"no_replica"' not in answer.text
        if status == 200 and not answer.json()["data"][0]["b64_json"]:
            status = 0
    except (httpx.HTTPError, ValueError, KeyError):  # no answer, or half of one
        status = 0
    return Told(at, kind, status, time.perf_counter() - begin, again)


async def closed_loop(url: str, clients: int, seconds: float, seed: int) -> float:
    """Pictures a second that a fleet draws, to the last one, for clients who ask again as soon as they are answered."""
    chance, done = random.Random(seed), 0
    begin = time.perf_counter()
    end = begin + seconds
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:

        async def ask() -> None:
            nonlocal done
            while time.perf_counter() < end:
                kind = chance.choices(range(len(KINDS)), [each.share for each in KINDS])[0]
                told = await asked(client, 0.0, kind, 0)
                done += told.status == 200  # not in one statement: that reads `done` before it waits

        await asyncio.gather(*(ask() for _ in range(clients)))
        return done / (time.perf_counter() - begin)


def counted(told: Sequence[Told]) -> dict[str, int]:
    """How many requests had which outcome."""
    return {name: sum(each.outcome == name for each in told) for name in ("answered", "refused", "failed", "lost")}


def percentiles(told: Sequence[Told]) -> tuple[float, float]:
    """Seconds of answered requests, p50 and p99; NaN without any."""
    seconds = [each.seconds for each in told if each.outcome == "answered"]
    if not seconds:
        return float("nan"), float("nan")
    p50, p99 = np.percentile(seconds, [50, 99])
    return float(p50), float(p99)
