"""The worker process: started, watched, and started again.

The process is MAX's model worker, as `max serve` starts it, with MAX's queues between. `max serve` ends when its worker
dies; here the queue and the routes live on.

Reference: MAX serve/api_server.py (lifespan), serve/pipelines/model_worker.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import multiprocessing
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from max.pipelines.lib.config import PipelineConfig
from max.pipelines.modeling.types import PipelineTask
from max.serve.config import MetricRecordingMethod, Settings
from max.serve.pipelines.model_worker import start_model_worker
from max.serve.pipelines.telemetry_worker import start_telemetry_consumer
from max.serve.process_control import SubprocessExit
from max.serve.worker_interface import WorkerQueues
from max.serve.worker_interface._zmq_queue import generate_zmq_ipc_path
from max.serve.worker_interface.zmq_interface import ZmqModelWorkerInterface, ZmqModelWorkerProxy

from max_zimage.host.lifeline import PARENT_VARIABLE
from max_zimage.host.processors import starting_on
from max_zimage.host.temporary import restore
from max_zimage.pipeline.context import ZImageContext
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.serving.folder import ServerFolder
from max_zimage.serving.http.state import ServerState
from max_zimage.serving.worker.max_hooks import (
    EMBEDDING_CACHE_VARIABLE,
    MAX_PICTURES_VARIABLE,
    PixelGenerationPipeline,
)

_log = logging.getLogger("max_zimage.serving")

_LOAD_SECONDS = 3600.0  # a cold compile for an accelerator takes half an hour on few cores
_TRIES, _SHORT = 5, 60.0  # so many lives in a row of less than so many seconds, and the fault is there to stay


class WorkerFailed(Exception):
    """The worker cannot be kept running."""


class Swept(Exception):
    """The worker's socket was removed before the server had connected to it."""


class Queues(ZmqModelWorkerInterface[Any, Any]):
    """MAX's queues, whose sockets are files: their folder is made again if it is gone.

    Once both sides are connected the files are not needed.

    Args:
        folder: Where the sockets are.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(PipelineTask.PIXEL_GENERATION, ZImageContext)
        self._folder = folder

    @asynccontextmanager
    async def model_worker_queues(self) -> AsyncGenerator[WorkerQueues[Any, Any]]:
        """The worker's side."""
        restore(self._folder)
        async with super().model_worker_queues() as queues:
            yield queues

    @asynccontextmanager
    async def model_worker_proxy(self) -> AsyncGenerator[ZmqModelWorkerProxy[Any, Any]]:
        """The server's side.

        Raises:
            Swept: If the worker's socket is gone, to which the server would wait to connect for ever.
        """
        restore(self._folder)
        if not Path(self.response_queue_config._endpoint.removeprefix("ipc://")).exists():
            raise Swept
        async with super().model_worker_proxy() as proxy:
            yield proxy


@dataclass
class Worker:
    """How to start the worker of a server.

    Attributes:
        config: MAX's configuration of the checkpoint.
        state: The server's.
        pictures_together: Pictures of several requests that may share a batch.
        folder: For its sockets and files.
        processors: That it keeps to; none for no limit.
    """

    config: PipelineConfig
    state: ServerState
    pictures_together: int
    folder: ServerFolder
    processors: Sequence[int] = ()

    async def keep_running(self) -> None:
        """Start the worker, and again when it dies, if the settings say so.

        Raises:
            WorkerFailed: If it dies and is not to be started again, never was ready, or dies over and over.
        """
        short_lives = 0
        while True:
            self.state.metrics.worker_starts.inc()
            self._ready_since: float | None = None
            try:
                await self._run()
            except Swept:
                _log.warning("the folder for temporary files was removed while the worker started; starting it again")
                continue
            except Exception as error:  # whatever it is, it is the end of this life
                expected = isinstance(error, (SubprocessExit, TimeoutError))
                _log.error("the worker ended: %s: %s", type(error).__name__, error, exc_info=not expected)
            self.state.dispatcher.detach()
            self.state.metrics.worker_pid = None
            if not self.state.was_ready:
                raise WorkerFailed("the worker could not load the model; the lines above say why")
            if not self.state.settings.restart:
                raise WorkerFailed("the worker died; with --restart it would be started again")
            lived = 0.0 if self._ready_since is None else time.monotonic() - self._ready_since
            short_lives = short_lives + 1 if lived < _SHORT else 1
            if short_lives >= _TRIES:
                raise WorkerFailed(f"the worker died {_TRIES} times, each time within {_SHORT:g} s of being ready")
            _log.warning("starting the worker again")
            await asyncio.sleep(2.0 ** (short_lives - 1) - 1)

    def end(self) -> None:
        """End the process, which leaves signals to the server, and has nothing to put in order."""
        for process in _processes():
            process.kill()

    async def _run(self) -> None:
        """One life of the worker."""
        self.folder.restore()
        os.environ[MAX_PICTURES_VARIABLE] = str(self.pictures_together)
        os.environ[EMBEDDING_CACHE_VARIABLE] = str(self.state.settings.embedding_cache_bytes)
        os.environ[PARENT_VARIABLE] = str(os.getpid())
        settings = Settings(
            MAX_SERVE_METRIC_RECORDING_METHOD=MetricRecordingMethod.NOOP,
            MAX_SERVE_DISABLE_TELEMETRY=True,
            MAX_SERVE_MW_TIMEOUT=_LOAD_SECONDS,
        )
        make: Any = PixelGenerationPipeline  # the class by itself: a generic alias of it cannot be sent to the worker
        factory = functools.partial(make, pipeline_config=self.config, pipeline_model=ZImagePipeline)
        with contextlib.ExitStack() as beginning:
            beginning.enter_context(starting_on(self.processors))
            async with (
                start_telemetry_consumer(settings) as telemetry,
                start_model_worker(
                    factory,
                    self.config,
                    settings,
                    telemetry,
                    model_worker_interface=Queues(self.folder.path),
                    zmq_endpoint_base=generate_zmq_ipc_path(),
                    memory_plan=None,
                ) as proxy,
            ):
                beginning.close()
                self.state.was_ready, self._ready_since = True, time.monotonic()
                self.state.metrics.worker_pid = next((child.pid for child in _processes()), None)
                self.state.dispatcher.attach(proxy)
                _log.info("ready")
                await _ended()  # or the server ends, which cancels this


async def _ended() -> None:
    """Wait until the worker process ends. MAX watches it too, but takes an exit code of 0 for no news."""
    processes = _processes()
    while all(child.is_alive() for child in processes):
        await asyncio.sleep(1.0)
    raise SubprocessExit("its process is gone")


def _processes() -> list[BaseProcess]:
    """The worker's process, by the name that MAX gives it."""
    return [child for child in multiprocessing.active_children() if child.name == "Model Worker"]
