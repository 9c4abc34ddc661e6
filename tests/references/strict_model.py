"""MAX's device graphs as its documentation and its own tests have them, around a model that runs anywhere.

A recording reads the very buffers that it was made with, and numbers on the host as they were then; it writes the same
buffers at every replay. What else a caller may get wrong raises: numbers in use or unknown, other buffers, and outputs
that are held on to when a recording is released. Outputs are filled with ones before they are written.

Reference: MAX engine/api.py; modular/modular max/tests/integration/graph/test_engine_device_graph.py.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from max.driver import CPU, Buffer, batch_inplace_copy
from max.dtype import DType

from max_zimage.progress import Silent


class Runs(Protocol):
    def execute(self, *args: Any) -> list[Buffer]: ...


@dataclass
class Recorded:
    addresses: list[int]
    on_host: dict[int, Buffer]
    outputs: list[Buffer]


class StrictModel:
    """Records and replays a model.

    Args:
        model: Makes the numbers.
        on_host: Which inputs are numbers that its host code reads.
    """

    def __init__(self, model: Runs, on_host: Sequence[bool]) -> None:
        self.model, self.on_host = model, on_host
        self.recorded: dict[int, Recorded] = {}
        self.calls: Counter[str] = Counter()

    def execute(self, *args: Any) -> list[Buffer]:
        self.calls["execute"] += 1
        return list(self.model.execute(*args))

    def capture(self, graph_keys: int, *inputs: Buffer) -> list[Buffer]:
        self.calls["capture"] += 1
        assert type(graph_keys) is int
        assert 0 <= graph_keys < 2**64
        assert inputs
        if graph_keys in self.recorded:
            raise RuntimeError(f"Graph keys already captured: {graph_keys}")
        outputs = [each.copy() for each in self.model.execute(*inputs)]
        spoil(outputs)  # nothing runs yet
        on_host = {place: inputs[place].copy() for place, fixed in enumerate(self.on_host) if fixed}
        self.recorded[graph_keys] = Recorded([each._data_ptr() for each in inputs], on_host, outputs)
        return list(outputs)

    def replay(self, graph_keys: int, *inputs: Buffer) -> None:
        self.calls["replay"] += 1
        recorded = self._found(graph_keys)
        if [each._data_ptr() for each in inputs] != recorded.addresses:
            raise RuntimeError(f"Unsafe graph key reuse: {graph_keys}")
        spoil(recorded.outputs)
        results = self.model.execute(*(recorded.on_host.get(place, each) for place, each in enumerate(inputs)))
        copy_in_order(recorded.outputs, results)

    def debug_verify_replay(self, graph_keys: int, *inputs: Buffer) -> None:
        self.calls["verify"] += 1
        assert len(inputs) == len(self._found(graph_keys).addresses)

    def release_captured_graph(self, graph_keys: int) -> None:
        self.calls["release"] += 1
        recorded = self.recorded.pop(graph_keys, None)
        if recorded is None:
            return
        while recorded.outputs:
            output = recorded.outputs.pop()
            assert sys.getrefcount(output) == 2, "an output of a released recording is held on to"
            spoil([output])

    def _found(self, key: int) -> Recorded:
        if key not in self.recorded:
            raise RuntimeError(f"No captured graph found for key {key}")
        return self.recorded[key]


def copy_in_order(destinations: Sequence[Buffer], sources: Sequence[Buffer]) -> None:
    """MAX's copies in the order of a GPU's stream; on a CPU they go on beside what follows, which may free a source."""
    batch_inplace_copy(destinations, sources)
    CPU().synchronize()


def spoil(buffers: Sequence[Buffer]) -> None:
    """Fill with NaN, or -1."""
    for each in buffers:
        size = each.num_elements * each.dtype.size_in_bytes
        copy_in_order([each.view(DType.uint8, (size,))], [Buffer.from_numpy(np.full(size, 255, np.uint8))])


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)
