"""A server from its start to its end: one process for HTTP and the queue, one for the model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Iterator

import uvicorn

from max_zimage.calling import Prepared
from max_zimage.cli import EMBEDDED_NAME
from max_zimage.context_tokenizer import ZImageTokenizer
from max_zimage.limits import DEFAULT_MAX_SEQUENCE_LENGTH
from max_zimage.pipeline import ZImagePipeline
from max_zimage.serving.app import make_app
from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.media import MediaStore
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.requests import Served
from max_zimage.serving.settings import ServerSettings
from max_zimage.serving.state import State
from max_zimage.serving.worker import Worker, WorkerFailed

_log = logging.getLogger("max_zimage.serving")
_LAST_WORDS = 5.0  # seconds for answers to get out when work in flight is ended


def run(settings: ServerSettings, prepared: Prepared) -> int:
    """Serve until a signal ends it or the worker fails for good.

    Args:
        settings: Of the server.
        prepared: The checkpoint, from `ZImagePipeline.prepare`.

    Returns:
        The exit code.
    """
    # MAX puts its sockets there, and large uploads go there: nobody else may look, and nothing is left behind.
    with tempfile.TemporaryDirectory(prefix="max-zimage-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        return asyncio.run(_serve(settings, prepared))


async def _serve(settings: ServerSettings, prepared: Prepared) -> int:
    metrics = Metrics()
    together = settings.pictures_together(on_host=prepared.devices[0].is_host)
    dispatcher = Dispatcher(
        queue=settings.limits.queue,
        in_worker=2 * together,
        seconds=settings.limits.seconds,
        metrics=metrics,
    )
    served = _served(settings, prepared)
    state = State(
        settings=settings,
        served=served,
        dispatcher=dispatcher,
        media=MediaStore(settings.media_bytes),
        metrics=metrics,
    )
    server = _Server(_uvicorn_config(settings, state))
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    worker = asyncio.create_task(Worker(prepared.config, state, together).keep_running())
    http, ended = asyncio.create_task(server.serve()), asyncio.create_task(end.wait())
    await asyncio.wait((worker, http, ended), return_when=asyncio.FIRST_COMPLETED)
    await _shut_down(settings, dispatcher, server, http, finish=ended.done())
    failed = worker.done()  # it never ends by itself but by a failure
    if failed:
        error = worker.exception()
        _log.error("%s", error, exc_info=None if isinstance(error, WorkerFailed) else error)
    worker.cancel()
    ended.cancel()
    await asyncio.gather(worker, ended, return_exceptions=True)
    return 1 if failed else 0


async def _shut_down(
    settings: ServerSettings, dispatcher: Dispatcher, server: _Server, http: asyncio.Task[None], *, finish: bool
) -> None:
    """Reject what waits, let finish what is drawn within a bound, answer the rest with an error, close the port."""
    if finish:
        _log.info("ending; work in flight has %g s", settings.shutdown_seconds)
        dispatcher.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(dispatcher.idle.wait(), settings.shutdown_seconds)
    dispatcher.close(running=True)
    server.should_exit = True
    await http


def _served(settings: ServerSettings, prepared: Prepared) -> Served:
    tokenizer = ZImageTokenizer(
        str(prepared.directory),
        prepared.config,
        "tokenizer",
        max_length=DEFAULT_MAX_SEQUENCE_LENGTH,
        default_num_inference_steps=ZImagePipeline.default_num_inference_steps,
    )
    tokenizer.max_input_pixels = settings.limits.input_pixels
    # MAX's flags do not say all of a step cache.
    tokenizer.defaults = prepared.sources.defaults
    return Served(
        name=settings.name,
        model=settings.model or EMBEDDED_NAME,
        dtype=prepared.sources.dtypes["transformer"],
        tokenizer=tokenizer,
        limits=settings.limits,
    )


def _uvicorn_config(settings: ServerSettings, state: State) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(state),
        host=settings.host,
        port=settings.port,
        lifespan="off",
        log_config=None,
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
