"""Blocks that come one after another: in which order, into which place, and with how many bytes at a time.

The queue of an accelerator is stood in for by one that records what it is told; buffers and copies are real.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
from max.driver import CPU, Buffer

from max_zimage.device.offload import PLACES, BlockEvent, Blocks, QueuedCopies, ReadCopies, Weights, nbytes_of

COUNT, WIDTH = 7, 24
BYTES = 4 * WIDTH


def block(number: int) -> Weights:
    return [Buffer.from_numpy(np.full(16, number, np.float32)), Buffer.from_numpy(np.full(8, -number, np.float32))]


def numbers(weights: Weights) -> list[float]:
    return [float(value) for each in weights for value in np.unique(each.to_numpy())]


class Recorded:
    """A queue of the CPU that records what it is told."""

    def __init__(self, name: str, told: list[Any]) -> None:
        self.name, self._told = name, told
        self.real = CPU().default_queue

    def wait_for(self, other: Recorded) -> None:
        self._told.append((self.name, "waits for", other.name))

    def synchronize(self) -> None:
        self._told.append((self.name, "ends"))
        CPU().synchronize()


class Copying(QueuedCopies):
    """Copies whose targets are noted, on a device that has one queue."""

    def __init__(self, blocks: dict[int, Weights], told: list[Any]) -> None:
        self._told = told
        queues: Any = Recorded("copies", told), Recorded("computes", told)
        super().__init__(blocks, CPU(), *queues)

    def _empty(self, like: Buffer) -> Buffer:
        return Buffer(like.dtype, [int(side) for side in like.shape], stream=CPU().default_queue)

    def ask(self, block: int) -> None:
        super().ask(block)
        CPU().synchronize()
        self._told.append(("copies", block, "into", self._last))


@pytest.fixture
def told() -> list[Any]:
    return []


def passes(blocks: Blocks, told: list[Any], count: int = 1) -> Iterator[list[float]]:
    for _ in range(count):
        for weights in blocks:
            told.append(("computes", numbers(weights)[0]))
            yield numbers(weights)


def test_each_block_is_copied_while_the_one_before_is_computed(told: list[Any]) -> None:
    """What one queue waits for is what the other was told before: never the computation that it runs beside."""
    blocks = Blocks(3, {}, Copying({number: block(number) for number in range(3)}, told))
    assert list(passes(blocks, told, 2)) == [[number, -number] for number in range(3)] * 2
    assert told == [
        ("copies", "waits for", "computes"), ("copies", 0, "into", 1), ("computes", "waits for", "copies"),
        ("copies", "waits for", "computes"), ("copies", 1, "into", 0), ("computes", 0),
        ("computes", "waits for", "copies"), ("copies", "waits for", "computes"), ("copies", 2, "into", 1),
        ("computes", 1),
        # The first block of the next pass comes while the last one of this is computed.
        ("computes", "waits for", "copies"), ("copies", "waits for", "computes"), ("copies", 0, "into", 0),
        ("computes", 2),
        ("computes", "waits for", "copies"), ("copies", "waits for", "computes"), ("copies", 1, "into", 1),
        ("computes", 0),
        ("computes", "waits for", "copies"), ("copies", "waits for", "computes"), ("copies", 2, "into", 0),
        ("computes", 1),
        ("computes", "waits for", "copies"), ("copies", "waits for", "computes"), ("copies", 0, "into", 1),
        ("computes", 2),
    ]  # fmt: skip


def test_blocks_that_stay_are_never_copied_and_the_ledger_counts_places(told: list[Any]) -> None:
    stay = {1: block(1), 4: block(4)}
    waiting = {number: block(number) for number in range(COUNT) if number not in stay}
    blocks = Blocks(COUNT, stay, Copying(waiting, told))
    assert [found[0] for found in passes(blocks, told)] == list(range(COUNT))
    assert [each[1] for each in told if each[0] == "copies" and each[2] == "into"] == [0, 2, 3, 5, 6, 0]
    assert {event.nbytes for event in blocks.ledger} == {(2 + PLACES) * BYTES}
    assert [(event.kind, event.block) for event in blocks.ledger][:5] == [
        ("asked", 0), ("asked", 2), ("used", 0), ("asked", 3), ("used", 2),
    ]  # fmt: skip
    blocks.drop()
    assert blocks.nbytes == 0
    assert told[-2:] == [("copies", "ends"), ("computes", "ends")]


def test_with_room_for_all_nothing_is_copied(told: list[Any]) -> None:
    blocks = Blocks(2, {0: block(0), 1: block(1)}, Copying({}, told))
    assert list(passes(blocks, [])) == [[0, 0], [1, -1]]
    assert (told, list(blocks.ledger), blocks.nbytes) == ([], [], 2 * BYTES)


@pytest.mark.parametrize("kind", ["queued", "read"])
def test_a_pass_that_was_not_finished(kind: str, told: list[Any]) -> None:
    """The next one begins at the beginning, whatever was on its way."""
    waiting = {number: block(number) for number in range(COUNT)}
    copies = Copying(waiting, told) if kind == "queued" else ReadCopies(block, CPU(), BYTES)
    blocks = Blocks(COUNT, {}, cast(Any, copies))
    for weights in blocks:
        if numbers(weights)[0] == 3:
            break
    assert [found[0] for found in passes(blocks, [])] == list(range(COUNT))
    blocks.drop()


class Reader:
    """Reads blocks, and counts the buffers that were alive at a time."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.threads: set[str] = set()
        self.fails = False

    def __call__(self, number: int) -> Weights:
        self.order.append(number)
        self.threads.add(threading.current_thread().name)
        if self.fails:
            raise OSError("the file is gone")
        return block(number)


def test_a_thread_reads_ahead_and_two_blocks_are_there_at_most() -> None:
    reader = Reader()
    copies = ReadCopies(reader, CPU(), BYTES)
    blocks = Blocks(COUNT, {2: block(2)}, copies)
    held: list[Weights] = []
    for _ in range(2):
        for weights in blocks:
            assert nbytes_of(weights) == BYTES
            held.append(weights)
            assert sum(map(nbytes_of, held[:-1])) <= 2 * BYTES  # of what stays, which is handed out twice
    assert max(event.nbytes for event in blocks.ledger) == (1 + PLACES) * BYTES
    # Lists that somebody still holds are empty, but for the last one, and that of the block that stays.
    assert [number for number, each in enumerate(held) if each] == [2, 9, 13]
    blocks.drop()  # which waits for what is on its way
    assert reader.order == [0, 1, 3, 4, 5, 6, 0, 1, 3, 4, 5, 6, 0]
    assert all(name.startswith("blocks") for name in reader.threads)
    assert (blocks.nbytes, copies.nbytes) == (0, 0)


def test_what_cannot_be_read_is_told_where_it_is_wanted_and_asked_for_again() -> None:
    reader = Reader()
    blocks = Blocks(COUNT, {}, ReadCopies(reader, CPU(), BYTES))
    reader.fails = True
    for _ in range(2):
        with pytest.raises(OSError, match="the file is gone"):
            list(blocks)
    reader.fails = False
    assert [found[0] for found in passes(blocks, [])] == list(range(COUNT))


def test_an_event_says_what_happened() -> None:
    assert BlockEvent("used", 3, 9)._asdict() == {"kind": "used", "block": 3, "nbytes": 9}
