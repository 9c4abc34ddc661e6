"""One request on its way through a server."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal

from max.pipelines.context.outputs import GenerationOutput

from max_zimage.pipeline.context import ZImageContext
from max_zimage.serving.errors import ApiError
from max_zimage.serving.worker.messages import Preview, Progress

Event = tuple[Progress, list[Preview]]
Change = Literal["queued", "begun", "step", "ended"]


@dataclass(eq=False)
class Job:
    """One request on its way.

    Attributes:
        context: What the worker gets.
        name: The id by which its client knows it; the worker has another.
        arrived: `time.monotonic` when it was queued.
        progress: How far it is; None while it waits.
        preview: The last small picture of its unfinished work, where it asked for some.
        events: What is told while it runs, then its end: an answer or an error.
        pump: The task that listens to the worker for it.
        end: What became of it; None while nothing has.
        ended: `time.monotonic` of that.
        run: Which of the requests that have had this id.
    """

    context: ZImageContext
    name: str
    arrived: float = field(default_factory=time.monotonic)
    progress: Progress | None = None
    preview: Preview | None = None
    events: asyncio.Queue[Event | GenerationOutput | ApiError] = field(default_factory=asyncio.Queue)
    pump: asyncio.Task[None] | None = None
    end: GenerationOutput | ApiError | None = None
    ended: float | None = None
    run: str = field(default_factory=lambda: secrets.token_hex(8))
