"""Work for a client, as long as that is there."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.types import Receive

from max_zimage.serving.errors import ApiError

T = TypeVar("T")


class HungUp(ApiError):
    """The client hung up: an answer that is counted, and reaches nobody."""

    def __init__(self) -> None:
        super().__init__(499, "cancelled", "the client hung up")


async def unless_gone(work: asyncio.Task[T], receive: Receive) -> T:
    """Wait for something, which is cancelled if the client hangs up before.

    Args:
        work: It.
        receive: Of the client's request, whose body has been read.

    Raises:
        HungUp: If the client did.
    """
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise HungUp
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
