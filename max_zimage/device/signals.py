"""Buffers by which several accelerators tell each other what they have done, for graphs that run on all of them.

Reference: MAX's `max.nn.comm.Signals`, which makes them; its graphs take one for each device as their last arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from max.driver import Buffer, Device
from max.nn.comm import Signals

BYTES = Signals.NUM_BYTES
"""Of each device."""


def signals_of(devices: Sequence[Device]) -> tuple[Buffer, ...]:
    """One for each device, in order; the same ones for all graphs of these devices, which run one after the other."""
    return _allocated(tuple(devices))


@lru_cache(maxsize=2)
def _allocated(devices: tuple[Device, ...]) -> tuple[Buffer, ...]:
    return tuple(Signals.allocate(devices))
