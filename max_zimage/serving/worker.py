"""The worker process: started, watched, and started again.

The process is MAX's model worker, as `max serve` starts it, with MAX's queues between. `max serve` ends when its worker
dies; here the queue and the routes live on.

Reference: MAX serve/api_server.py (lifespan), serve/pipelines/model_worker.py.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing
import os
import time
from dataclasses import dataclass
from typing import Any

from max.pipelines.lib.config import PipelineConfig
from max.pipelines.modeling.types import PipelineTask
from max.serve.config import MetricRecordingMethod, Settings
from max.serve.pipelines.model_worker import start_model_worker
from max.serve.pipelines.telemetry_worker import start_telemetry_consumer
from max.serve.process_control import SubprocessExit
from max.serve.worker_interface._zmq_queue import generate_zmq_ipc_path
from max.serve.worker_interface.zmq_interface import ZmqModelWorkerInterface

from max_zimage.pipeline import ZImagePipeline
from max_zimage.serving.context import ZImageContext
from max_zimage.serving.pipeline import MAX_PICTURES_VARIABLE, PixelGenerationPipeline
from max_zimage.serving.state import State

_log = logging.getLogger("max_zimage.serving")

_LOAD_SECONDS = 3600.0  # a cold compile for an accelerator takes half an hour on few cores
_TRIES, _SHORT = 5, 60.0  # so many lives in a row of less than so many seconds, and the fault is there to stay


class WorkerFailed(Exception):
    """The worker cannot be kept running."""


@dataclass
class Worker:
    """How to start the worker of a server.

    Attributes:
        config: MAX's configuration of the checkpoint.
        state: The server's.
        pictures_together: Pictures of several requests that may share a batch.
    """

    config: PipelineConfig
    state: State
    pictures_together: int

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
            except Exception as error:  # whatever it is, it is the end of this life
                expected = isinstance(error, (SubprocessExit, TimeoutError))
                _log.error("the worker ended: %s: %s", type(error).__name__, error, exc_info=not expected)
            self.state.dispatcher.detach()
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

    async def _run(self) -> None:
        """One life of the worker."""
        os.environ[MAX_PICTURES_VARIABLE] = str(self.pictures_together)
        settings = Settings(
            MAX_SERVE_METRIC_RECORDING_METHOD=MetricRecordingMethod.NOOP,
            MAX_SERVE_DISABLE_TELEMETRY=True,
            MAX_SERVE_MW_TIMEOUT=_LOAD_SECONDS,
        )
        interface: ZmqModelWorkerInterface[Any, Any] = ZmqModelWorkerInterface(
            PipelineTask.PIXEL_GENERATION, ZImageContext
        )
        make: Any = PixelGenerationPipeline  # the class by itself: a generic alias of it cannot be sent to the worker
        factory = functools.partial(make, pipeline_config=self.config, pipeline_model=ZImagePipeline)
        async with (
            start_telemetry_consumer(settings) as telemetry,
            start_model_worker(
                factory,
                self.config,
                settings,
                telemetry,
                model_worker_interface=interface,
                zmq_endpoint_base=generate_zmq_ipc_path(),
                memory_plan=None,
            ) as proxy,
        ):
            self.state.was_ready, self._ready_since = True, time.monotonic()
            self.state.dispatcher.attach(proxy)
            _log.info("ready")
            await _ended()  # or the server ends, which cancels this


async def _ended() -> None:
    """Wait until the worker process ends. MAX watches it too, but takes an exit code of 0 for no news."""
    processes = [child for child in multiprocessing.active_children() if child.name == "Model Worker"]
    while all(child.is_alive() for child in processes):
        await asyncio.sleep(1.0)
    raise SubprocessExit("its process is gone")
