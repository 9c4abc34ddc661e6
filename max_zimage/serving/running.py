"""What of a server lives as long as it does, whoever holds its port: worker, folder, what is kept of requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from max_zimage.enhancer.base import Enhancer
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.serving.assembled import assembled, put_down
from max_zimage.serving.enhancing import EnhancerDesk
from max_zimage.serving.folder import ServerFolder
from max_zimage.serving.settings import ServerSettings
from max_zimage.serving.store.state_store import StateStore
from max_zimage.serving.supervisor import Worker, WorkerFailed

_log = logging.getLogger("max_zimage.serving")
_RESTORE = 600.0  # seconds between two looks after the folder


@dataclass(frozen=True)
class Opened:
    """All that a server is made of, checked, with nothing loaded.

    Attributes:
        settings: Of the server.
        prepared: The checkpoint, from `ZImagePipeline.prepare`.
        store: For requests and pictures by URL.
        enhancer: Of prompts, checked but not loaded; None for none.
    """

    settings: ServerSettings
    prepared: CheckedModel
    store: StateStore
    enhancer: Enhancer | None = None


def use_folder(folder: ServerFolder) -> None:
    """Have this process and those it starts keep their temporary files in a server's folder."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder.path)


class Running:
    """A server at work, without its port.

    Args:
        opened: What it is made of.
        folder: Its own.
        processors: That the worker keeps to; none for no limit.

    Attributes:
        state: What its routes share.
        lasting: Tasks that do not end by themselves but by a failure; empty before `start`.
    """

    def __init__(self, opened: Opened, folder: ServerFolder, processors: Sequence[int] = ()) -> None:
        self._opened, self._folder = opened, folder
        settings, prepared = opened.settings, opened.prepared
        self.state = assembled(settings, prepared, opened.store)
        if opened.enhancer is not None:
            self.state.enhancer = EnhancerDesk(opened.enhancer, waiting=settings.limits.queue)
        together = settings.pictures_together(on_host=prepared.devices[0].is_host)
        self._keeper = Worker(prepared.config, self.state, together, folder, processors)
        self.lasting: list[asyncio.Task[Any]] = []
        self._others: list[asyncio.Task[Any]] = []

    def start(self) -> None:
        """Start the worker and what goes with it; in the event loop that `end` is awaited in."""
        self.lasting.append(asyncio.create_task(self._keeper.keep_running()))
        if self.state.enhancer is not None:
            self.lasting.append(asyncio.create_task(self.state.enhancer.keep()))
        self._others = [asyncio.create_task(each) for each in (_look_after(self._folder), self.state.records.keep())]

    @property
    def is_ready(self) -> bool:
        """Whether pictures are drawn, and prompts written out where that is promised."""
        return self.state.dispatcher.is_ready and (self.state.enhancer is None or self.state.enhancer.is_ready)

    @property
    def failure(self) -> BaseException | None:
        """Why it cannot go on; None while it can."""
        return next((task.exception() for task in self.lasting if task.done() and not task.cancelled()), None)

    async def finish(self, at_once: asyncio.Event | None = None) -> None:
        """Reject what waits, let finish what is drawn within the time of the settings, answer the rest with an error.

        Args:
            at_once: Set where that time is not to be waited for; None if nobody can wish it.
        """
        dispatcher, seconds = self.state.dispatcher, self._opened.settings.shutdown_seconds
        _log.info("ending; work in flight has %g s", seconds)
        dispatcher.close()
        waits = [asyncio.create_task(each.wait()) for each in (dispatcher.idle, at_once) if each is not None]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
        dispatcher.close(running=True)

    async def end(self) -> bool:
        """Write down what became of the last requests and end all of it; the queue is closed before, by `dispatcher`.

        Returns:
            Whether something had failed, which is logged.
        """
        failed = [task for task in self.lasting if task.done()]
        for task in failed:
            error = task.exception()
            expected = isinstance(error, (WorkerFailed, ValueError))  # an enhancer's files, for example
            _log.error("%s", error, exc_info=None if expected else error)
        await put_down(self.state, self._opened.store)
        self._keeper.end()
        tasks = (*self.lasting, *self._others)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return bool(failed)


async def _look_after(folder: ServerFolder) -> None:
    """Keep the folder from being swept, and make it again if it was."""
    while True:
        await asyncio.sleep(_RESTORE)
        with contextlib.suppress(OSError):  # it is made before it is used, where this is told
            folder.restore()
