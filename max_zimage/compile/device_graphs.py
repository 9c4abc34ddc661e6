"""Compiled graphs replayed as device graphs: the launches of a call are recorded once and then made by one.

MAX records what a model launches (`Model.capture`) and makes it again (`Model.replay`), with the same buffers every
time, without running any code on the host. So every recording has inputs of its own, which a call refreshes in place,
and outputs that the next call overwrites, which is why callers get copies. Numbers that a graph takes on the host are
part of a recording; so are all sizes. A recording is kept for every set of these that comes often enough, a few at a
time, for each holds the memory of its intermediate results.

A recording is used only if its first replay gives, bit by bit, what the model gave before. Whatever fails, the call is
made as it would have been without.

Reference: MAX engine/api.py, _Model_capture to _Model_release_captured_graph; pipelines/lib/graph_capture.py.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, Protocol
from weakref import WeakSet

from max.driver import CPU, Buffer, Device, batch_inplace_copy
from max.dtype import DType

from max_zimage import progress

VARIABLE = "MAX_ZIMAGE_DEVICE_GRAPHS"
"""`on` or `off`, the default until a GPU has shown that replayed steps are right and faster."""

KEPT = 4
"""Recordings of a graph at a time: two sizes of pictures, with guidance and without."""
CALLS = 2
"""The call that records: the one before it has loaded kernels and made workspaces, which must not be recorded."""
CALLS_TO_REPLACE = 32
"""The same where another recording has to go, so that sizes that change all the time cost next to nothing."""
CALLS_AFTER_FAILURE = 1000
"""So many calls later it is tried again, with sizes that could not be recorded."""
_COUNTED = 256  # sets of sizes whose calls are counted


class Recordable(Protocol):
    """What `max.engine.Model` does with device graphs."""

    def execute(self, *args: Any) -> list[Buffer]:
        """Run it."""

    def capture(self, graph_keys: int, *inputs: Buffer) -> list[Buffer]:
        """Record a run under an unused number; returns the buffers that every replay writes."""

    def replay(self, graph_keys: int, *inputs: Buffer) -> None:
        """Make the launches of a recording; the inputs are the very buffers that it was made with."""

    def debug_verify_replay(self, graph_keys: int, *inputs: Buffer) -> None:
        """Run it and compare its launches with those of a recording; raises where they differ."""

    def release_captured_graph(self, graph_keys: int) -> None:
        """Forget a recording."""


def wanted() -> bool:
    """Whether calls may be recorded and replayed.

    Raises:
        ValueError: If the variable is something else than on or off.
    """
    value = os.environ.get(VARIABLE, "off")
    if value not in ("on", "off"):
        raise ValueError(f"{VARIABLE} must be on or off, got {value!r}")
    return value == "on"


def possible(device: Device) -> bool:
    """Whether MAX records on a device: on NVIDIA's; on a CPU there is nothing to record."""
    return not device.is_host and device.api == "cuda"


def check(device: Device) -> None:
    """Check that the variable is one that can be obeyed; where it has no effect, say so once a process.

    Raises:
        ValueError: If it is something else than on or off.
    """
    if wanted() and not possible(device):
        _say_without_effect(device.label)


@cache
def _say_without_effect(label: str) -> None:
    progress.note(f"{VARIABLE}=on has no effect here: device graphs are for NVIDIA GPUs, and this runs on {label}")


@dataclass(frozen=True)
class _Recording:
    """Attributes: the number that MAX knows it by, the inputs it reads, and the outputs it writes."""

    number: int
    inputs: tuple[Buffer, ...]
    outputs: list[Buffer]


class DeviceGraphs:
    """The calls of one compiled graph. Callers may be several threads; they take turns.

    Args:
        name: The graph's, for notes.
        model: The graph.
        device: Where it runs.
        on_host: Which of its inputs it takes on the host.
    """

    def __init__(self, name: str, model: Recordable, device: Device, on_host: Sequence[bool]) -> None:
        self._name, self._model, self._device, self._on_host = name, model, device, tuple(on_host)
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()  # the one used last at the end
        self._calls: Counter[Hashable] = Counter()
        self._numbers = count()
        self._given_up = self._said = False
        self._lock = threading.Lock()
        _all.add(self)

    def __len__(self) -> int:
        """Recordings that are held."""
        return len(self._recordings)

    def __call__(self, inputs: Sequence[Buffer]) -> list[Buffer]:
        """Run the graph, replayed if there is a recording or one can be made.

        Args:
            inputs: As `Model.execute` takes them; they are read before this returns or in the device's order.

        Returns:
            The outputs, which belong to the caller.
        """
        if not self._fits(inputs):
            return self._model.execute(*inputs)
        with self._lock:
            key = self._key(inputs)
            recording = self._recordings.get(key)
            if recording is None:
                return self._record(key, inputs) if self._is_due(key) else self._model.execute(*inputs)
            self._recordings.move_to_end(key)
            return self._replay(recording, inputs)

    def verify(self) -> None:
        """Have MAX compare the launches of every recording with those of a run; for tests and measurements.

        Raises:
            RuntimeError: Where they differ.
        """
        with self._lock:
            for each in self._recordings.values():
                self._model.debug_verify_replay(each.number, *each.inputs)

    def give_up(self) -> int:
        """Forget all recordings and make no more; returns how many there were."""
        with self._lock:
            held = len(self._recordings)
            self._give_up()
        return held

    def _fits(self, inputs: Sequence[Buffer]) -> bool:
        """Whether the inputs are where the graph wants them; of others MAX is to say what is wrong."""
        return len(inputs) == len(self._on_host) and all(
            each.is_contiguous and each.device == (CPU() if on_host else self._device)
            for each, on_host in zip(inputs, self._on_host, strict=True)
        )

    def _key(self, inputs: Sequence[Buffer]) -> Hashable:
        """All that is fixed by recording: sizes, and the numbers on the host."""
        return tuple(
            (each.dtype, tuple(each.shape), _bytes(each) if on_host else b"")
            for each, on_host in zip(inputs, self._on_host, strict=True)
        )

    def _is_due(self, key: Hashable) -> bool:
        if self._given_up:
            return False
        self._calls[key] += 1
        if len(self._calls) > _COUNTED:  # the rarest goes, and of equals the one that came first
            del self._calls[min(self._calls, key=lambda each: (self._calls[each], each == key))]
        return self._calls[key] >= (CALLS if len(self._recordings) < KEPT else CALLS_TO_REPLACE)

    def _record(self, key: Hashable, inputs: Sequence[Buffer]) -> list[Buffer]:
        """Make the call, then a recording of it, and keep that if it gives the same."""
        own = tuple(
            each if on_host else Buffer(each.dtype, tuple(each.shape), self._device)
            for each, on_host in zip(inputs, self._on_host, strict=True)
        )
        self._refresh(own, inputs)
        results = self._model.execute(*own)
        del self._calls[key]
        while len(self._recordings) >= KEPT:
            self._release(next(iter(self._recordings)))
        number = next(self._numbers)
        try:
            recording = _Recording(number, own, self._model.capture(number, *own))
        except Exception as error:  # MAX has no type of its own for it
            self._calls[key] = -CALLS_AFTER_FAILURE
            self._say("recorded", error)
            return results
        self._recordings[key] = recording
        try:
            again = self._replayed(recording, inputs)
            if any(_bytes(one) != _bytes(other) for one, other in zip(results, again, strict=True)):
                raise RuntimeError("its replay gives other numbers")
        except Exception as error:
            self._give_up()
            self._say("replayed", error)
        return results

    def _replay(self, recording: _Recording, inputs: Sequence[Buffer]) -> list[Buffer]:
        try:
            return self._replayed(recording, inputs)
        except Exception as error:
            self._give_up()
            self._say("replayed", error)
        return self._model.execute(*inputs)

    def _say(self, what: str, error: Exception) -> None:
        """Once, and no more: the pictures are what they would be."""
        if not self._said:
            progress.note(f"{self._name} cannot be {what} as a device graph and runs as without: {error}")
        self._said = True

    def _replayed(self, recording: _Recording, inputs: Sequence[Buffer]) -> list[Buffer]:
        self._refresh(recording.inputs, inputs)
        self._model.replay(recording.number, *recording.inputs)
        results = [Buffer(each.dtype, tuple(each.shape), self._device) for each in recording.outputs]
        batch_inplace_copy(results, recording.outputs)
        return results

    def _refresh(self, own: Sequence[Buffer], inputs: Sequence[Buffer]) -> None:
        """Copy what is on the device; what is on the host is equal, for it is part of the key."""
        moving = [place for place, on_host in enumerate(self._on_host) if not on_host]
        batch_inplace_copy([own[place] for place in moving], [inputs[place] for place in moving])

    def _give_up(self) -> None:
        self._given_up = True
        self._calls.clear()
        for key in list(self._recordings):
            self._release(key)

    def _release(self, key: Hashable) -> None:
        """Forget a recording; MAX wants its outputs dropped first."""
        recording = self._recordings.pop(key)
        recording.outputs.clear()  # not only this object may know it
        self._model.release_captured_graph(recording.number)


_all: WeakSet[DeviceGraphs] = WeakSet()


def give_up_all() -> int:
    """Give back the memory of all recordings, and make no more; returns how many there were."""
    return sum(each.give_up() for each in list(_all))


def _bytes(buffer: Buffer) -> bytes:
    """The contents, of any dtype; waits for the device."""
    size = buffer.num_elements * buffer.dtype.size_in_bytes
    return buffer.view(DType.uint8, (size,)).to(CPU()).to_numpy().tobytes()
