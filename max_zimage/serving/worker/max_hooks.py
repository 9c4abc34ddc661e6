"""The pipeline that MAX's worker makes: its own, and the scheduler that goes with it.

MAX's worker chooses the scheduler by the name of the pipeline's class, which therefore is that of MAX's own, and makes
it by a name in `max.serve.scheduler`, which is where ours is put. Both hold for MAX 26.7; should another version do it
differently, its own scheduler serves one request at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import max.serve.scheduler as max_scheduler
from max.pipelines.context import PixelGenerationContextType
from max.pipelines.diffusion.pipeline import PixelGenerationPipeline as MaxPixelGenerationPipeline

from max_zimage.host.lifeline import end_with_parent
from max_zimage.host.temporary import restore
from max_zimage.serving.settings import usual_pictures

MAX_PICTURES_VARIABLE = "MAX_ZIMAGE_MAX_BATCH_PICTURES"
"""Pictures that may share a batch; MAX hands its worker no settings of ours, so the environment does."""

MIX_LORAS_VARIABLE = "MAX_ZIMAGE_MIX_LORAS"
"""Whether requests under different adapters may share a batch; likewise."""

EMBEDDING_CACHE_VARIABLE = "MAX_ZIMAGE_EMBEDDING_CACHE_BYTES"
"""Bytes of features that the worker keeps; likewise."""


class PixelGenerationPipeline(MaxPixelGenerationPipeline[PixelGenerationContextType]):
    """MAX's pipeline of pictures with the project's scheduler.

    Attributes:
        max_pictures: Pictures that requests may share a batch with.
        mix_loras: Whether requests may share one whose adapters differ.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what MAX's registry passes."""
        from max_zimage.pipeline.zimage import ZImagePipeline
        from max_zimage.serving.worker.step_scheduler import StepScheduler
        from max_zimage.text.kept_features import KeptFeatures

        server = multiprocessing.parent_process()
        if MAX_PICTURES_VARIABLE in os.environ and server is not None:
            _belong_to(server.sentinel)
        super().__init__(*args, **kwargs)
        usual = usual_pictures(on_host=self._devices[0].is_host)
        self.max_pictures = int(os.environ.get(MAX_PICTURES_VARIABLE, usual))
        self.mix_loras = os.environ.get(MIX_LORAS_VARIABLE) == "1"
        model, kept = getattr(self, "_pipeline_model", None), int(os.environ.get(EMBEDDING_CACHE_VARIABLE, "0"))
        if kept and isinstance(model, ZImagePipeline):
            model.text_encoder.kept_features = KeptFeatures(kept)
        max_scheduler.OneShotScheduler = StepScheduler  # type: ignore[misc]


def _belong_to(server: int) -> None:
    """Live no longer than the server, and leave it to the server when to end.

    Ctrl-C on a terminal, its end and a supervisor reach all processes; the server decides what becomes of the work.
    """
    end_with_parent(server)
    restore(Path(os.environ["TMPDIR"]))  # before anything asks for it: Python would take another one for good
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
