"""The worker process: started, watched, and started again.

The process is MAX's model worker, as `max serve` starts it, with MAX's queues between. `max serve` ends when its worker
dies; here the queue and the routes live on.

Reference: MAX serve/api_server.py (lifespan), serve/pipelines/model_worker.py.
"""

from __future__ import annotations

import asyncio
import functools
import logging
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
_TRIES, _WITHIN = 5, 60.0  # deaths within so many seconds after which the fault is taken to be there to stay


class WorkerFailed(Exception):
    """The worker cannot be kept running."""


@dataclass(frozen=True)
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
        deaths: list[float] = []
        while True:
            self.state.metrics.worker_starts.inc()
            try:
                await self._run()
            except (SubprocessExit, RuntimeError, TimeoutError) as error:
                _log.error("the worker ended: %s", error)
            self.state.dispatcher.detach()
            deaths = [death for death in deaths if time.monotonic() - death < _WITHIN] + [time.monotonic()]
            if not self.state.was_ready:
                raise WorkerFailed("the worker could not load the model; the lines above say why")
            if not self.state.settings.restart:
                raise WorkerFailed("the worker died; with --restart it would be started again")
            if len(deaths) >= _TRIES:
                raise WorkerFailed(f"the worker died {_TRIES} times within {_WITHIN:g} s")
            _log.warning("starting the worker again")

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
            self.state.was_ready = True
            self.state.dispatcher.attach(proxy)
            _log.info("ready")
            await asyncio.Event().wait()  # until the worker dies or the server ends, which cancels this
