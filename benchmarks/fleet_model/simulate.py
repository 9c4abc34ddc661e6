"""A fleet as a simulation: requests come, are sent to a replica by their shape, wait, share batches, are drawn.

It has what decides about waiting in the real one: the router's rule, each replica's bounded queue in the order of
arrival, batches of one shape that begin with the oldest request, and replicas of one processor that slow each other. It
has no network, no failures, and no autoscaling: the number of replicas is what is asked for.

Reference: max_zimage/serving/ray_serve/shapes.py (ranked), serving/dispatcher.py, serving/worker/step_scheduler.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from max_zimage.serving.ray_serve.shapes import ranked

_SOON = 1e-9  # seconds that are none, but for rounding


@dataclass(frozen=True, kw_only=True)
class Service:
    """How long work takes.

    Attributes:
        parts: Shape and pictures of a batch -> seconds of each of its parts, the steps and what is around them.
        encode: Seconds of a prompt's features, where they are not kept.
        hits: Share of prompts whose features are kept.
        overhead: Shape -> seconds of a request besides, in which its replica draws others.
        slowdown: Replicas at work -> by what a part takes longer, where they share a processor.
    """

    parts: Callable[[int, int], Sequence[float]]
    encode: float = 0.0
    hits: float = 0.0
    overhead: Callable[[int], float] = lambda shape: 0.0
    slowdown: Callable[[int], float] = lambda working: 1.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A fleet.

    Attributes:
        replicas: How many.
        shapes: Kinds of requests.
        room: Requests that a replica has at most; more are refused.
        together: Pictures of one shape that share a batch at most.
        window: Seconds that a replica waits for company before it begins a batch that is not full.
        slack: Of the router.
    """

    replicas: int
    shapes: int
    room: int
    together: int = 1
    window: float = 0.0
    slack: int = 1


@dataclass
class Seen:
    """What became of the requests.

    Attributes:
        begun: When each answered request came, in seconds.
        seconds: How long each of them took.
        shapes: Of each of them.
        refused: Times of those that were refused.
        work: Seconds in which replicas drew, of all together.
        batches: Pictures of each batch.
    """

    begun: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    shapes: list[int] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    work: float = 0.0
    batches: list[int] = field(default_factory=list)


class Fleet:
    """The simulation.

    Args:
        setup: Of the fleet.
        service: Of its replicas.
        seed: For which prompts are kept.
    """

    def __init__(self, setup: Setup, service: Service, seed: int = 0) -> None:
        self._setup, self._service, self._chance = setup, service, random.Random(seed)
        self.seen = Seen()
        self._env = simpy.Environment()
        self._waiting = np.zeros(setup.replicas, np.int64)
        self._queues: list[list[tuple[int, float]]] = [[] for _ in range(setup.replicas)]
        self._calls = [self._env.event() for _ in range(setup.replicas)]
        self._working = 0
        names = {str(number): 0 for number in range(setup.replicas)}
        # The order that each shape has of all replicas is that of the router where nobody waits.
        self._orders = [
            np.array([int(name) for name in ranked(f"shape {shape}", names, setup.slack, setup.room)])
            for shape in range(setup.shapes)
        ]

    def run(self, planned: Sequence[tuple[float, int]]) -> Seen:
        """Answer requests.

        Args:
            planned: When each comes and its shape, in the order of time.

        Returns:
            What became of them, all of them answered or refused.
        """
        self._env.process(self._arrivals(planned))
        for number in range(self._setup.replicas):
            self._env.process(self._replica(number))
        self._env.run()
        return self.seen

    def chosen(self, shape: int) -> int:
        """The replica that a request goes to: the first of `ranked`, found without sorting all of them."""
        order = self._orders[shape]
        waiting = self._waiting[order]
        least = int(waiting.min())
        most = min(least + (self._setup.slack if least else 0), self._setup.room - 1)
        return int(order[np.argmax(waiting <= most)])  # where all are full, any of them refuses it

    def _arrivals(self, planned: Sequence[tuple[float, int]]) -> Generator[Any, Any, None]:
        for at, shape in planned:
            yield self._env.timeout(max(0.0, at - self._env.now))
            number = self.chosen(shape)
            if self._waiting[number] >= self._setup.room:
                self.seen.refused.append(self._env.now)
                continue
            self._waiting[number] += 1
            self._queues[number].append((shape, self._env.now))
            if not self._calls[number].triggered:
                self._calls[number].succeed()

    def _replica(self, number: int) -> Generator[Any, Any, None]:
        queue, setup = self._queues[number], self._setup
        while True:
            if not queue:
                self._calls[number] = self._env.event()
                yield self._calls[number]
            shape, came = queue[0]
            while (left := came + setup.window - self._env.now) > _SOON:
                if sum(each == shape for each, _ in queue) >= setup.together:
                    break
                self._calls[number] = self._env.event()
                yield self._env.any_of((self._env.timeout(left), self._calls[number]))
            batch = [each for each in queue if each[0] == shape][: setup.together]
            for each in batch:
                queue.remove(each)
            yield from self._drawn(shape, len(batch))
            self._waiting[number] -= len(batch)
            for _, at in batch:
                self.seen.begun.append(at)
                self.seen.shapes.append(shape)
                self.seen.seconds.append(self._env.now - at + self._service.overhead(shape))
            self.seen.batches.append(len(batch))

    def _drawn(self, shape: int, pictures: int) -> Generator[Any, Any, None]:
        service = self._service
        misses = sum(self._chance.random() >= service.hits for _ in range(pictures)) if service.encode else 0
        self._working += 1
        for part in [*([misses * service.encode] if misses else []), *service.parts(shape, pictures)]:
            taken = part * service.slowdown(self._working)
            self.seen.work += taken
            yield self._env.timeout(taken)
        self._working -= 1
