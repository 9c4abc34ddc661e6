"""A server from its start to its end: one process for HTTP and the queue, one for the model."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from max_zimage.enhancer.base import Enhancer
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.serving.assembled import assembled, put_down
from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.enhancing import EnhancerDesk
from max_zimage.serving.folder import ServerFolder
from max_zimage.serving.http.app import make_app
from max_zimage.serving.http.connections import BACKLOG, LimitedProtocol, watch
from max_zimage.serving.http.state import ServerState
from max_zimage.serving.settings import ServerSettings
from max_zimage.serving.store.state_store import StateStore
from max_zimage.serving.supervisor import Worker, WorkerFailed

_log = logging.getLogger("max_zimage.serving")
_LAST_WORDS = 5.0  # seconds for answers to get out when work in flight is ended
_ONE_SIGNAL = 0.5  # seconds: a terminal and a supervisor may both pass on the same wish
_RESTORE = 600.0  # seconds between two looks after the folder


def run(settings: ServerSettings, prepared: CheckedModel, store: StateStore, enhancer: Enhancer | None = None) -> int:
    """Serve until a signal ends it or the worker fails for good.

    Args:
        settings: Of the server.
        prepared: The checkpoint, from `ZImagePipeline.prepare`.
        store: For requests and pictures by URL.
        enhancer: Of prompts, checked but not loaded; None for none.

    Returns:
        The exit code.
    """
    with ServerFolder() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder.path)
        return asyncio.run(_serve(settings, prepared, store, folder, enhancer))


async def _serve(
    settings: ServerSettings, prepared: CheckedModel, store: StateStore, folder: ServerFolder, enhancer: Enhancer | None
) -> int:
    state = assembled(settings, prepared, store)
    if enhancer is not None:
        state.enhancer = EnhancerDesk(enhancer, waiting=settings.limits.queue)
    together = settings.pictures_together(on_host=prepared.devices[0].is_host)
    server = _Server(_uvicorn_config(settings, state))
    end = Ending()
    keeper = Worker(prepared.config, state, together, folder)
    worker = asyncio.create_task(keeper.keep_running())
    http, ended = asyncio.create_task(server.serve()), asyncio.create_task(end.wished.wait())
    kept = watch(server.server_state.connections), _look_after(folder), state.records.keep()
    others = [asyncio.create_task(each) for each in kept]
    # None of these ends by itself but by a failure.
    lasting: list[asyncio.Task[Any]] = [worker]
    if state.enhancer is not None:
        lasting.append(asyncio.create_task(state.enhancer.keep()))
    await asyncio.wait((*lasting, http, ended), return_when=asyncio.FIRST_COMPLETED)
    await _shut_down(settings, state.dispatcher, server, http, end)
    failed = [task for task in lasting if task.done()]
    for task in failed:
        error = task.exception()
        expected = isinstance(error, (WorkerFailed, ValueError))  # an enhancer's files, for example
        _log.error("%s", error, exc_info=None if expected else error)
    await put_down(state, store)
    keeper.end()
    for task in (*lasting, ended, *others):
        task.cancel()
    await asyncio.gather(*lasting, ended, *others, return_exceptions=True)
    return 1 if failed else 0


class Ending:
    """The wish that the server ends, by a signal; another one says at once, whatever is being drawn.

    Attributes:
        wished: Set by the first signal.
        at_once: Set by the second, where that comes from a person or a supervisor: a terminal that is closed may send
            several.
    """

    def __init__(self) -> None:
        self.wished, self.at_once = asyncio.Event(), asyncio.Event()
        self._since = 0.0
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._wish)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            loop.add_signal_handler(signal.SIGHUP, self._wish, False)

    def _wish(self, insists: bool = True) -> None:
        if not self.wished.is_set():
            self.wished.set()
            self._since = time.monotonic()
        elif insists and time.monotonic() > self._since + _ONE_SIGNAL:
            self.at_once.set()


async def _shut_down(
    settings: ServerSettings, dispatcher: Dispatcher, server: _Server, http: asyncio.Task[None], end: Ending
) -> None:
    """Reject what waits, let finish what is drawn within a bound, answer the rest with an error, close the port."""
    if end.wished.is_set():
        _log.info("ending; work in flight has %g s", settings.shutdown_seconds)
        dispatcher.close()
        waits = [asyncio.create_task(event.wait()) for event in (dispatcher.idle, end.at_once)]
        await asyncio.wait(waits, timeout=settings.shutdown_seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
    dispatcher.close(running=True)
    server.should_exit = True
    await http


async def _look_after(folder: ServerFolder) -> None:
    """Keep the folder from being swept, and make it again if it was."""
    while True:
        await asyncio.sleep(_RESTORE)
        with contextlib.suppress(OSError):  # it is made before it is used, where this is told
            folder.restore()


def _uvicorn_config(settings: ServerSettings, state: ServerState) -> uvicorn.Config:
    protocol: Any = functools.partial(LimitedProtocol, limits=settings.connections, metrics=state.metrics)
    return uvicorn.Config(
        make_app(state),
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        backlog=BACKLOG,
        lifespan="off",
        log_config=None,
        proxy_headers=False,  # whom to believe is a flag: `ForwardedMiddleware`
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(_LAST_WORDS),
    )


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: what ends first here is the queue, and then the port."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield
