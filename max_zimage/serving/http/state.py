"""What all routes of a server share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from max_zimage.pipeline.context import ZImageContext
from max_zimage.request.request import GenerationRequest
from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.enhancing import EnhancerDesk, Revision
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.api_names import ApiNames
from max_zimage.serving.http.enhanced import revised
from max_zimage.serving.http.media import MediaStore
from max_zimage.serving.http.requests import ServedModel, request_of
from max_zimage.serving.http.traced import SPAN, TRACE
from max_zimage.serving.job import Job
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.settings import ServerSettings
from max_zimage.serving.store.records import RequestRecords
from max_zimage.serving.tracing import Tracing, facts_of

_log = logging.getLogger("max_zimage.serving")


@dataclass(eq=False)
class ServerState:
    """One server.

    Attributes:
        settings: What it was started with.
        served: The model.
        dispatcher: The requests.
        media: Pictures by URL.
        records: Requests by their ids, on whichever replica.
        metrics: Its figures.
        enhancer: Writes prompts out, and answers chats; None for none.
        tracing: Takes spans; None for none.
        was_ready: Whether the worker has been ready once. Before, requests are refused; while it restarts, they wait.
    """

    settings: ServerSettings
    served: ServedModel
    dispatcher: Dispatcher
    media: MediaStore
    records: RequestRecords
    metrics: Metrics
    enhancer: EnhancerDesk | None = None
    tracing: Tracing | None = None
    was_ready: bool = False

    def check_room(self) -> None:
        """Refuse a request before its body is read: while the model is loaded for the first time, or nothing fits in.

        Raises:
            ApiError: 503 or 429.
        """
        if not self.was_ready:
            message = "the model is being loaded, which takes minutes the first time; ask /health when it is there"
            raise ApiError(503, "loading", message, headers={"Retry-After": "5"})
        self.dispatcher.check_room()

    async def submit(self, context: ZImageContext, request: Request) -> Job:
        """Queue what a request asks for, under its id and in its trace.

        Args:
            context: What the worker gets.
            request: The request.

        Raises:
            ApiError: As `Dispatcher.submit`; 409 also if another replica draws a request of that id.
        """
        await self._check_id(request)
        return self._queued(context, request)

    async def submit_enhanced(
        self,
        asked: GenerationRequest,
        names: ApiNames,
        make: Callable[[GenerationRequest], ZImageContext],
        request: Request,
    ) -> tuple[Revision, Job]:
        """The same, with the prompt written out first where that is asked for; its id is known meanwhile.

        Args:
            asked: What a request asks for.
            names: Of the API it came by.
            make: Of that, or of the same with another prompt, what the worker gets; called in a thread.
            request: The request.

        Raises:
            ApiError: As `submit` and `enhanced.revised`; 499 if it is cancelled by its id.
        """

        async def prepared() -> tuple[Revision, ZImageContext]:
            revision = await revised(self.enhancer, self.served, asked, names, request)
            return revision, await asyncio.to_thread(make, revision.request)

        if not asked.enhance or self.enhancer is None:
            revision, context = await prepared()
            return revision, await self.submit(context, request)
        await self._check_id(request)
        with self.records.unqueued.known(request.state.request_id) as unqueued:
            revision, context = await unqueued.waits_for(prepared())
            return revision, self._queued(context, request, unqueued.run)

    async def _check_id(self, request: Request) -> None:
        if request.state.chosen_id:
            await self.records.check_free(request.state.request_id)

    def _queued(self, context: ZImageContext, request: Request, run: str | None = None) -> Job:
        if self.tracing is not None:
            for name, value in getattr(request.state, TRACE).items():
                setattr(context, name, value)
            getattr(request.state, SPAN).set_attributes(facts_of(context))
        return self.dispatcher.submit(context, request.state.request_id, run)

    async def request_of(self, names: ApiNames, arguments: Mapping[str, Any]) -> GenerationRequest:
        """What a request's arguments ask for, which are checked as `requests.request_of` does."""
        return await asyncio.to_thread(lambda: request_of(self.served, names, **arguments))

    def note(self, job: Job, user: str | None) -> None:
        """One line in the log for each request; never its prompt."""
        context = job.context
        _log.info(
            "request %s: %d x %dx%d, %d steps, guidance %g, seed %s%s",
            job.name,
            context.num_images_per_prompt,
            context.width,
            context.height,
            context.num_inference_steps,
            context.guidance_scale,
            context.seed,
            f", user {user!r}" if user else "",
        )

    def note_texts(self, job: Job, user: str | None) -> None:
        """The same of one that is only encoded."""
        tokens = len(job.context.tokens.array)
        _log.info("request %s: %d tokens to encode%s", job.name, tokens, f", user {user!r}" if user else "")


def state_of(request: Request) -> ServerState:
    """The server that a request came to."""
    state: ServerState = request.app.state.server
    return state
