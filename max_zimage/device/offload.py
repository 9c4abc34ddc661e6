"""Blocks whose weights come to a device one after another, the next one while the one before it is computed.

    stay         blocks that have room on the device, brought there once
    streamed     the others, in turn in one of two places there

The order is the same in every pass: when a streamed block is handed out, the next one has been asked for, and goes to
the place of the one before. Who brings them is a `Copies`: on an accelerator a queue of its own, from page-locked host
memory, `QueuedCopies`; on a CPU a thread that reads the checkpoint's files, `ReadCopies`.

Reference: diffusers hooks/group_offloading.py (use_stream, num_blocks_per_group 1); stable-diffusion.cpp
--stream-layers; `reference/weights.md` section 4.4.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol

from max.driver import Buffer, Device, DeviceQueue

PLACES = 2
"""Blocks of those that are streamed that are on the device at a time: one is computed, one comes."""

Weights = list[Buffer]


class BlockEvent(NamedTuple):
    """What happened to a block's weights.

    Attributes:
        kind: "asked": they are on their way, into a place that nothing reads any more; "used": they are there, and what
            is computed with them comes next.
        block: Which one.
        nbytes: Of all blocks that have a place on the device then, those on their way included.
    """

    kind: Literal["asked", "used"]
    block: int
    nbytes: int


class Copies(Protocol):
    """Brings blocks into two places, in turn."""

    @property
    def nbytes(self) -> int:
        """Bytes that both places take on the device."""

    def ask(self, block: int) -> None:
        """Begin to bring a block, into the place of the one that was taken before the last one."""

    def take(self) -> Weights:
        """The block that was asked for last; what is computed with it from here on finds it there."""

    def drop(self) -> None:
        """Give both places up."""


class Blocks:
    """A number of blocks that are handed out in order, again and again.

    Args:
        count: How many.
        stay: Those that are on the device all the time.
        copies: Brings the others.

    Attributes:
        ledger: What happened, the last ten thousand events.
    """

    def __init__(self, count: int, stay: Mapping[int, Weights], copies: Copies) -> None:
        self._count, self._stay, self._copies = count, stay, copies
        self._staying = sum(map(nbytes_of, stay.values()))
        self._coming: int | None = None
        self.ledger: deque[BlockEvent] = deque(maxlen=10_000)
        streamed = [block for block in range(count) if block not in stay]
        self._next = dict(zip(streamed, streamed[1:] + streamed[:1], strict=True))

    def __iter__(self) -> Iterator[Weights]:
        """The weights of all blocks, each until the next one is asked for."""
        for block in range(self._count):
            yield self._stay[block] if block in self._stay else self._taken(block)

    @property
    def nbytes(self) -> int:
        """Bytes that they take on the device."""
        return self._staying + self._copies.nbytes

    def drop(self) -> None:
        """Give the memory back, for good."""
        self._copies.drop()
        self._stay, self._staying = {}, 0

    def _taken(self, block: int) -> Weights:
        if self._coming != block:  # at the beginning, and where a pass was not finished
            self._ask(block)
        self._coming = None
        weights = self._copies.take()
        self._ask(self._next[block])
        self._note("used", block)
        return weights

    def _ask(self, block: int) -> None:
        self._copies.ask(block)
        self._coming = block
        self._note("asked", block)

    def _note(self, kind: Literal["asked", "used"], block: int) -> None:
        self.ledger.append(BlockEvent(kind, block, self.nbytes))


class QueuedCopies:
    """Blocks in the host's memory, copied to an accelerator by a queue beside the one that computes.

    Args:
        blocks: Block -> its weights in the host's memory, page-locked where copies are to run beside the computation.
        device: Where they go.
        queue: Copies; a new one of the device if not given.
        computing: Computes; the device's own if not given.
    """

    def __init__(
        self,
        blocks: Mapping[int, Weights],
        device: Device,
        queue: DeviceQueue | None = None,
        computing: DeviceQueue | None = None,
    ) -> None:
        self._blocks = blocks
        self._queue = DeviceQueue(device) if queue is None else queue
        self._computing = device.default_queue if computing is None else computing
        one = next(iter(blocks.values()), [])
        self._places = [[self._empty(each) for each in one] for _ in range(PLACES)]
        self._last = 0

    @property
    def nbytes(self) -> int:
        """See `Copies`."""
        return sum(map(nbytes_of, self._places))

    def ask(self, block: int) -> None:
        """See `Copies`. What was computed with the block in this place must be done before the copy begins."""
        self._last = (self._last + 1) % PLACES
        self._queue.wait_for(self._computing)
        for target, source in zip(self._places[self._last], self._blocks[block], strict=True):
            target.inplace_copy_from(source)

    def take(self) -> Weights:
        """See `Copies`. What is computed from here on waits for the copy; the host does not."""
        self._computing.wait_for(self._queue)
        return self._places[self._last]

    def drop(self) -> None:
        """See `Copies`; for good. Whatever is copied or computed is waited for first."""
        self._queue.synchronize()
        self._computing.synchronize()
        self._places, self._blocks = [[]] * PLACES, {}

    def _empty(self, like: Buffer) -> Buffer:
        """A buffer of the copying queue: MAX has a copy done by the queue of what is written."""
        return Buffer(like.dtype, [int(side) for side in like.shape], stream=self._queue)


class ReadCopies:
    """Blocks that a thread reads from files, for a CPU: each is made anew when its turn comes.

    Args:
        read: Block -> its weights, read.
        device: The CPU.
        nbytes: Of a block.
    """

    def __init__(self, read: Callable[[int], Weights], device: Device, nbytes: int) -> None:
        self._read, self._device, self._nbytes = read, device, nbytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blocks")
        self._coming: Future[Weights] | None = None
        self._taken: Weights = []
        self._before: Weights = []

    @property
    def nbytes(self) -> int:
        """See `Copies`; the one that is being read counts whole."""
        coming = 0 if self._coming is None else self._nbytes
        return coming + nbytes_of(self._before) + nbytes_of(self._taken)

    def ask(self, block: int) -> None:
        """See `Copies`."""
        if self._coming is not None:  # asked for, and never taken
            self._coming.exception()
            self._coming = None
        # Emptied, not only forgotten: whoever still goes through the blocks holds the list.
        self._device.synchronize()
        self._before.clear()
        self._coming = self._thread.submit(self._read, block)

    def take(self) -> Weights:
        """See `Copies`.

        Raises:
            Exception: What reading it raised.
        """
        assert self._coming is not None
        coming, self._coming = self._coming, None
        self._before, self._taken = self._taken, coming.result()
        return self._taken

    def drop(self) -> None:
        """See `Copies`."""
        if self._coming is not None:
            self._coming.exception()
        self._coming = None
        self._device.synchronize()
        for each in (self._before, self._taken):
            each.clear()


def nbytes_of(weights: Sequence[Buffer]) -> int:
    """Bytes of some buffers."""
    return sum(each.num_elements * each.dtype.size_in_bytes for each in weights)
