"""Buffers by which several accelerators tell each other what they have done, for graphs that run on all of them.

Reference: MAX's `max.nn.comm.Signals`, which makes them; its graphs take one for each device as their last arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from max.driver import Buffer, Device
from max.nn.comm import Signals

BYTES = Signals.NUM_BYTES
"""Of each device."""


@dataclass(frozen=True, eq=False)
class SignalBuffers:
    """Of some devices; their memory is given back with the last graph that has them.

    Attributes:
        buffers: One for each device, in order.
    """

    buffers: tuple[Buffer, ...] = ()


NO_SIGNALS = SignalBuffers()
_there: WeakValueDictionary[tuple[Device, ...], SignalBuffers] = WeakValueDictionary()


def signals_of(devices: Sequence[Device]) -> SignalBuffers:
    """The same ones for all graphs of these devices, which run one after the other."""
    found = _there.get(tuple(devices))
    if found is None:
        found = _there[tuple(devices)] = SignalBuffers(tuple(Signals.allocate(devices)))
    return found
