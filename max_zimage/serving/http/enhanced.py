"""Requests with `enhance`: their prompt is written out by the server's enhancer before they are queued."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from max_zimage.enhancer.apply import Check, prompt_check
from max_zimage.errors import RequestError
from max_zimage.request.request import GenerationRequest
from max_zimage.serving.enhancing import EnhancerDesk, Revision
from max_zimage.serving.http.api_names import ApiNames, refused
from max_zimage.serving.http.hanging_up import unless_gone
from max_zimage.serving.http.requests import ServedModel


async def revised(
    enhancer: EnhancerDesk | None, served: ServedModel, asked: GenerationRequest, names: ApiNames, request: Request
) -> Revision:
    """What is to be drawn of a request, and what its answer says of its prompt.

    Args:
        enhancer: The server's, or None.
        served: The model that draws.
        asked: The request, validated.
        names: Of the API it came by.
        request: The HTTP request it came by, whose body has been read.

    Raises:
        ApiError: 400 if the server has no enhancer, 503 while that is being loaded, 429 if too many requests wait for
            it, 499 if the client hangs up.
    """
    if not asked.enhance:
        return Revision(request=asked)
    if enhancer is None:
        message = "{field}: this server has no enhancer; have it started with --enhancer, or leave it out"
        raise refused(RequestError.of("enhance", message), names)
    work = asyncio.create_task(enhancer.revised(asked, _check(served, asked)))
    return await unless_gone(work, request.receive)


def _check(served: ServedModel, asked: GenerationRequest) -> Check:
    """That a text in place of a prompt is within the limits of the server and of the checkpoint."""
    tokenizer, most = served.tokenizer, served.limits.prompt_characters
    within_tokens = prompt_check(asked, tokenizer.prompts, tokenizer.limits)

    def check(text: str) -> None:
        if len(text) > most:
            message = "the enhanced prompt has {given} characters, and this server allows {most}"
            raise RequestError.of("prompt", message, given=len(text), most=most)
        within_tokens(text)

    return check
