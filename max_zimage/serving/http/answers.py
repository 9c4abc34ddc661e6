"""Waiting for a request's pictures and putting them into an answer, at once or as server-sent events."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.request.open_responses import OutputContent, OutputImageContent, OutputTextContent
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from max_zimage.pipeline.not_finite import CODE
from max_zimage.sampling.noise import image_seed
from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.hanging_up import unless_gone
from max_zimage.serving.http.media import MediaStore
from max_zimage.serving.job import Job

KEEP_ALIVE = 15.0
"""Seconds after which a stream without events has a comment; half of what the most impatient balancers wait."""


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    """How an answer looks.

    Attributes:
        event: Prefix of event names: "image_generation" or "image_edit".
        by_url: Whether pictures come as URLs.
        output_format: png, jpeg or webp.
        quality: As the request named it.
        progress: Whether events tell of each step, which OpenAI's do not.
        of_picture: What is said of each picture besides.
        facts: What is said of the request besides.
    """

    event: str
    by_url: bool
    output_format: str
    quality: str
    progress: bool
    of_picture: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


async def finished(dispatcher: Dispatcher, job: Job, request: Request) -> GenerationOutput:
    """Wait for the pictures, and cancel the work if the client hangs up before.

    Args:
        dispatcher: Has the job.
        job: The request.
        request: Its HTTP request, whose body has been read.

    Raises:
        ApiError: As `Dispatcher.events`; 499 if the client hung up.
    """

    async def answer() -> GenerationOutput:
        async with aclosing(dispatcher.events(job)) as told:
            async for event in told:
                if isinstance(event, GenerationOutput):
                    return event
        raise AssertionError("events end with an answer or an error")

    try:
        return await unless_gone(asyncio.create_task(answer()), request.receive)
    finally:
        dispatcher.cancel(job, "client")  # nothing happens to a request that is done


class EventResponse(StreamingResponse):
    """Server-sent events of one request.

    Args:
        content: The events.
        cancel: Called when they end, however they end: ends a request that is not done.
    """

    def __init__(self, content: AsyncGenerator[bytes, None], cancel: Callable[[], object]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would keep events back
        super().__init__(kept_alive(content), media_type="text/event-stream", headers=headers)
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()


async def kept_alive(content: AsyncGenerator[bytes, None], seconds: float = KEEP_ALIVE) -> AsyncGenerator[bytes, None]:
    """Events, and a comment where there is none for a while: balancers end connections on which nothing moves.

    Args:
        content: The events.
        seconds: Between two signs of life.
    """
    following: asyncio.Task[bytes] | None = None
    try:
        while True:
            following = following or asyncio.create_task(_next(content))
            await asyncio.wait((following,), timeout=seconds)
            if not following.done():
                yield b": still here\n\n"
                continue
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield event
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await content.aclose()


async def _next(content: AsyncIterator[bytes]) -> bytes:
    return await anext(content)


def file_of(item: OutputContent) -> bytes | None:
    """A picture of an answer, encoded; None where there is a reason in its place."""
    return base64.b64decode(item.image_data or "") if isinstance(item, OutputImageContent) else None


def picture_or_error(item: OutputContent) -> bytes:
    """A picture of an answer that has no place for errors, encoded.

    Raises:
        ApiError: 500 if there is a reason in its place.
    """
    file = file_of(item)
    if file is None:
        raise ApiError(500, CODE, item.text if isinstance(item, OutputTextContent) else "")
    return file


async def images_answer(
    output: GenerationOutput, job: Job, form: ResponseFormat, media: MediaStore, request: Request
) -> dict[str, Any]:
    """The body of an OpenAI images answer; a picture that is missing has an error and no file."""
    items = [
        {**await _picture(item, form, media, request), "seed": image_seed(job.context.seed or 0, index)}
        for index, item in enumerate(output.output)
    ]
    return {"created": int(time.time()), "data": items, **_facts(job, form), "usage": _usage(job)}


async def events(
    dispatcher: Dispatcher, job: Job, form: ResponseFormat, media: MediaStore, request: Request
) -> AsyncGenerator[bytes, None]:
    """The same as server-sent events: previews, then each picture; or an error, since the status is sent."""
    previews = 0
    created = int(time.time())
    try:
        async with aclosing(dispatcher.events(job)) as told:
            async for event in told:
                if isinstance(event, GenerationOutput):
                    for index, item in enumerate(event.output):
                        if file_of(item) is None:
                            continue
                        yield _event(
                            f"{form.event}.completed",
                            created_at=created,
                            index=index,
                            seed=image_seed(job.context.seed or 0, index),
                            **await _picture(item, form, media, request),
                            **_facts(job, form),
                            usage=_usage(job),
                        )
                    # Last, because a client that is told of an error listens no longer.
                    if missing := [index for index, item in enumerate(event.output) if file_of(item) is None]:
                        yield _event("error", **_missing(event.output[missing[0]]), index=missing)
                    continue
                progress, drawn = event
                if form.progress:
                    yield _event(
                        f"{form.event}.progress", step=progress.step, steps=progress.steps, request_id=job.name
                    )
                for preview in drawn:
                    yield _event(
                        f"{form.event}.partial_image",
                        created_at=created,
                        partial_image_index=previews,
                        index=preview.picture,
                        b64_json=base64.b64encode(preview.png).decode(),
                        **_facts(job, form) | {"output_format": "png"},
                    )
                previews += bool(drawn)
    except ApiError as error:
        yield _event("error", **error.body())


async def _picture(item: OutputContent, form: ResponseFormat, media: MediaStore, request: Request) -> dict[str, Any]:
    file = file_of(item)
    if file is None:
        return {"url" if form.by_url else "b64_json": None, **_missing(item)}
    if not form.by_url:
        return {"b64_json": base64.b64encode(file).decode(), **form.of_picture}
    name = await media.put(file, f"image/{form.output_format}")
    return {"url": str(request.url_for("image_content", name=name)), **form.of_picture}


def _missing(item: OutputContent) -> dict[str, Any]:
    """What stands in place of a picture."""
    return ApiError(500, CODE, item.text if isinstance(item, OutputTextContent) else "").body()


def _facts(job: Job, form: ResponseFormat) -> dict[str, Any]:
    size = f"{job.context.width}x{job.context.height}"
    told = {"size": size, "quality": form.quality, "background": "opaque", "output_format": form.output_format}
    return told | dict(form.facts)


def _usage(job: Job) -> dict[str, Any]:
    """OpenAI's shape; pictures are not made of tokens here, so that only the prompt's are counted."""
    tokens = len(job.context.tokens.array)
    return {
        "input_tokens": tokens,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
        "output_tokens": 0,
        "total_tokens": tokens,
    }


def _event(kind: str, **content: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n".encode()
