"""A server from its start to its end: one process for HTTP and the queue, one for the model."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from max_zimage.serving.folder import ServerFolder
from max_zimage.serving.http.app import make_app
from max_zimage.serving.http.connections import BACKLOG, LimitedProtocol, watch
from max_zimage.serving.http.state import ServerState
from max_zimage.serving.running import Opened, Running, use_folder
from max_zimage.serving.settings import ServerSettings

_LAST_WORDS = 5.0  # seconds for answers to get out when work in flight is ended
_ONE_SIGNAL = 0.5  # seconds: a terminal and a supervisor may both pass on the same wish


def run(opened: Opened) -> int:
    """Serve until a signal ends it or the worker fails for good.

    Args:
        opened: What the server is made of.

    Returns:
        The exit code.
    """
    with ServerFolder() as folder:
        use_folder(folder)
        return asyncio.run(_serve(opened, folder))


async def _serve(opened: Opened, folder: ServerFolder) -> int:
    running = Running(opened, folder)
    state, settings = running.state, opened.settings
    server = _Server(_uvicorn_config(settings, state))
    end = Ending()
    running.start()
    http, ended = asyncio.create_task(server.serve()), asyncio.create_task(end.wished.wait())
    watching = asyncio.create_task(watch(server.server_state.connections))
    await asyncio.wait((*running.lasting, http, ended), return_when=asyncio.FIRST_COMPLETED)
    await _shut_down(running, server, http, end)
    failed = await running.end()
    for task in (ended, watching):
        task.cancel()
    await asyncio.gather(ended, watching, return_exceptions=True)
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


async def _shut_down(running: Running, server: _Server, http: asyncio.Task[None], end: Ending) -> None:
    """End the queue as was wished for, or at once where something has failed; and then close the port."""
    if end.wished.is_set():
        await running.finish(end.at_once)
    else:
        running.state.dispatcher.close(running=True)
    server.should_exit = True
    await http


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
