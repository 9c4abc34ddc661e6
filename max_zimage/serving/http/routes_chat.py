"""OpenAI's chat completions, answered by the model of the server's enhancer: at once, or as server-sent events.

Reference: OpenAI's API, create chat completion and its streaming.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from max_zimage.enhancer.chat import ChatAnswer, ChatAsked, ChatModel, ChatRefused
from max_zimage.sampling.noise import fresh_seed
from max_zimage.serving.enhancing import EnhancerDesk
from max_zimage.serving.errors import ApiError, bad_request
from max_zimage.serving.http.answers import EventResponse
from max_zimage.serving.http.chat_body import ELSEWHERE, ChatRequest, messages_of, sampling_of, tokens_of
from max_zimage.serving.http.hanging_up import unless_gone
from max_zimage.serving.http.middleware import internal_error
from max_zimage.serving.http.routes_images import described, json_body, parsed
from max_zimage.serving.http.state import ServerState, state_of

router = APIRouter(prefix="/v1")
_log = logging.getLogger("max_zimage.serving")


@router.post("/chat/completions", openapi_extra=described(ChatRequest))
async def chat(request: Request) -> Response:
    """Answer a conversation."""
    state = state_of(request)
    body = parsed(ChatRequest, await json_body(request), ELSEWHERE)
    desk, model = _model(state)
    if body.model not in (None, model.name):
        message = f"model: this server writes text with {model.name!r}, not {body.model!r}; leave it out"
        raise ApiError(404, "model_not_found", message, param="model")
    asked = ChatAsked(
        messages=messages_of(body, state.served.limits.prompt_characters),
        seed=fresh_seed() if body.seed is None else body.seed,
        max_tokens=tokens_of(body, model),
        sampling=sampling_of(body, model),
    )
    try:
        model.check(asked)
    except ChatRefused as error:
        raise bad_request(str(error), error.subject) from error
    caller = ", ".join(dict.fromkeys(filter(None, (body.user, body.safety_identifier))))
    name = f"chatcmpl-{request.state.request_id}"
    _log.info(
        "request %s: a chat, seed %d%s", request.state.request_id, asked.seed, f", user {caller!r}" if caller else ""
    )
    head = {"id": name, "created": int(time.time()), "model": model.name}
    if body.stream:
        told = asyncio.Queue[dict[str, Any] | None]()
        # It begins before its events do: whether there is room for it is said by the status.
        task = desk.begin(model, _listened(asked, told, drafts=bool(body.drafts)))
        task.add_done_callback(lambda _: told.put_nowait(None))
        return EventResponse(_events(task, told, body, head, request.state.request_id), task.cancel)
    try:
        found = await unless_gone(desk.begin(model, asked), request.receive)
    except ChatRefused as error:
        raise bad_request(str(error), error.subject) from error
    said = {"role": "assistant", "content": found.text, "refusal": None}
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": _reason(found)}
    return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": _usage(found)})


def _model(state: ServerState) -> tuple[EnhancerDesk, ChatModel]:
    """The model of text.

    Raises:
        ApiError: 404 if there is none in this server.
    """
    desk = state.enhancer
    model = None if desk is None else desk.chat_model
    if desk is None or model is None:
        message = (
            "this server writes no text: a model of text comes with --enhancer embedded, encoder or a DiffusionGemma, "
            "not with an address"
        )
        raise ApiError(404, "chat_not_available", message)
    return desk, model


def _listened(asked: ChatAsked, told: asyncio.Queue[dict[str, Any] | None], *, drafts: bool) -> ChatAsked:
    """The same with all that is written put into a queue of this loop."""
    loop = asyncio.get_running_loop()

    def tell(part: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(told.put_nowait, part)

    asked = replace(asked, on_text=lambda text: tell({"choices": [_choice({"content": text})]}))
    return replace(asked, on_draft=lambda text: tell({"choices": [], "draft": text})) if drafts else asked


async def _events(
    task: asyncio.Task[ChatAnswer],
    told: asyncio.Queue[dict[str, Any] | None],
    body: ChatRequest,
    head: dict[str, Any],
    request_id: str,
) -> AsyncGenerator[bytes, None]:
    """Chunks while the answer is written, then how it ended; or an error, since the status is sent."""
    chunk = head | {"object": "chat.completion.chunk"}
    try:
        yield _event(chunk | {"choices": [_choice({"role": "assistant", "content": ""})]})
        while (each := await told.get()) is not None:
            yield _event(chunk | each)
        found = await task
        yield _event(chunk | {"choices": [_choice({}, _reason(found))]})
        if body.stream_options is not None and body.stream_options.include_usage:
            yield _event(chunk | {"choices": [], "usage": _usage(found)})
        yield b"data: [DONE]\n\n"
    except (ApiError, ChatRefused) as error:
        refused = error if isinstance(error, ApiError) else bad_request(str(error), error.subject)
        yield _event(refused.body())
    except Exception:
        _log.exception("request %s failed in the server", request_id)
        yield _event(internal_error(request_id).body())


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _reason(found: ChatAnswer) -> str:
    return "stop" if found.is_whole else "length"


def _usage(found: ChatAnswer) -> dict[str, int]:
    total = found.prompt_tokens + found.tokens
    return {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.tokens, "total_tokens": total}


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()
