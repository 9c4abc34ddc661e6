"""One replica of a fleet: a server without a port, to which Ray Serve brings the requests.

It is the server of `max-zimage serve`, whole: its routes and their gate, its queue, its worker process, its figures.
What there is uvicorn's, and here Ray's proxy's, are connections and their limits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp, Message

from max_zimage.host.processors import claim
from max_zimage.serving.folder import ServerFolder
from max_zimage.serving.http.app import make_app
from max_zimage.serving.ray_serve.call import NOT_SERVING, Call
from max_zimage.serving.ray_serve.router import READY
from max_zimage.serving.running import Opened, Running, use_folder

_TICK = 0.05  # seconds between two looks at a worker that starts


class Replica:
    """A server of a fleet.

    Args:
        opening: Checks and returns what the server is made of; called here, where its device is.
        processors: That its worker keeps to; none for no limit. What answers requests runs wherever there is room: a
            processor that a worker computes on is not left to others for seconds.
    """

    def __init__(self, opening: Callable[[], Opened], processors: Sequence[int] = ()) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._opening, self._processors = opening, processors
        self._running: Running | None = None

    async def start(self) -> None:
        """Load the model, and wait until pictures are drawn: before, a replica gets no requests.

        Raises:
            RuntimeError: If it cannot be loaded.
        """
        opened = self._opening()
        self._folder = ServerFolder()
        use_folder(self._folder)
        running = Running(opened, self._folder, self._processors)
        self._app: ASGIApp = make_app(running.state)
        running.start()
        while not running.is_ready:
            if running.failure is not None:
                await running.end()
                self._folder.close()
                raise RuntimeError(str(running.failure)) from running.failure
            await asyncio.sleep(_TICK)
        self._running = running

    @property
    def _serves(self) -> bool:
        running = self._running
        if running is None or running.failure is not None or running.state.dispatcher.is_closing:
            return False
        return running.is_ready  # not while its worker is being started again

    async def answer(self, call: Call) -> AsyncGenerator[Message, None]:
        """Answer a request, message by message; to leave early is to hang up.

        Args:
            call: The request.

        Yields:
            ASGI messages, or one of the type `NOT_SERVING` alone.
        """
        if not self._serves and not call.only_reads:
            yield {"type": NOT_SERVING}
            return
        told: asyncio.Queue[Message | None] = asyncio.Queue()
        work = asyncio.create_task(self._answered(call, told))
        work.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (message := await told.get()) is not None:
                yield message
            work.result()
        finally:
            work.cancel()  # nothing happens to one that is done
            await asyncio.gather(work, return_exceptions=True)

    async def whole(self, call: Call) -> tuple[str, int, bytes]:
        """An answer in one piece, of a replica by its name.

        Returns:
            The replica, the status and the body.
        """
        messages = [message async for message in self.answer(call)]
        status = next((each["status"] for each in messages if each["type"] == "http.response.start"), 503)
        return _own_name(), status, b"".join(each.get("body", b"") for each in messages)

    async def _answered(self, call: Call, told: asyncio.Queue[Message | None]) -> None:
        given = asyncio.Event()

        async def receive() -> Message:
            if not given.is_set():
                given.set()
                return {"type": "http.request", "body": call.body, "more_body": False}
            await asyncio.Event().wait()  # who hangs up cancels this
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            told.put_nowait(message)

        await self._app(dict(call.scope), receive, send)

    def check_health(self) -> None:
        """Say that the replica is to be replaced.

        Raises:
            RuntimeError: If its worker is gone for good.
        """
        if self._running is not None and (failure := self._running.failure) is not None:
            self._running.state.dispatcher.close(running=True)  # those that wait are answered, not left behind
            raise RuntimeError(f"this replica cannot go on: {failure}")

    def record_routing_stats(self) -> Mapping[str, Any]:
        """What the router knows of the replica."""
        return {READY: self._serves}

    async def end(self) -> None:
        """Finish what is drawn within the time that a server takes to end, and put everything away."""
        running, self._running = self._running, None
        if running is None:
            return
        await running.finish()
        await running.end()
        self._folder.close()


class PictureReplica(Replica):
    """As Ray Serve makes and ends it."""

    async def __init__(self, opening: Callable[[], Opened], processors: int) -> None:  # type: ignore[misc]  # Ray awaits
        super().__init__(opening, claim(processors))
        await self.start()

    async def __del__(self) -> None:  # Ray calls and awaits it
        await self.end()


def _own_name() -> str:
    from ray import serve

    return serve.get_replica_context().replica_id.unique_id
