"""Samplers, a file each: its name is the file's, and its `plan(schedule)` returns its `Evaluations`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.names import SAMPLERS
from max_zimage.sampling.schedule import Schedule, ScheduleSpec
from max_zimage.sampling.schedule import schedule as new_schedule


def plan(name: str, schedule: Schedule) -> Evaluations:
    """The evaluations of a request under a sampler.

    Args:
        name: One of `max_zimage.sampling.names.SAMPLERS`.
        schedule: The request's.

    Raises:
        ValueError: If there is no such sampler; names those there are.
    """
    if name not in SAMPLERS:
        raise ValueError(f"must be one of {', '.join(SAMPLERS)}, got {name!r}")
    made: Callable[[Schedule], Evaluations] = import_module(f"{__name__}.{name}").plan
    return made(schedule)


@lru_cache(maxsize=256)
def cost(name: str, steps: int) -> tuple[int, bool]:
    """How often a sampler evaluates the model in so many steps, and whether it draws noise in them.

    Neither depends on the levels.
    """
    found = plan(name, new_schedule(ScheduleSpec(shift=1.0, num_train_timesteps=1000), steps=steps))
    return found.count, bool(found.noisy.any())


@lru_cache(maxsize=256)
def remembers(name: str) -> bool:
    """Whether a sampler looks at steps before the one that it takes, apart from their latents."""
    found = plan(name, new_schedule(ScheduleSpec(shift=1.0, num_train_timesteps=1000), steps=4))
    begins = [found.of_step(step).start for step in range(1, 4)]
    known = found.matrices.shape[2] - int(found.noisy.any())  # the last slot is noise
    return bool(found.matrices[begins, :, 2:known].any())


def forgetful() -> tuple[str, ...]:
    """All samplers that do not."""
    return tuple(name for name in SAMPLERS if not remembers(name))


def is_stochastic(name: str) -> bool:
    """Whether a sampler draws noise between its steps."""
    return cost(name, 2)[1]
