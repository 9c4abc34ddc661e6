"""AUTOMATIC1111's routes, `/sdapi/v1/txt2img` and `img2img`, and what tells of them and ends them.

Its clients speak of the picture that is drawn as if there were one at a time. Here that is the oldest request of these
routes that has no answer yet; requests of other routes are not theirs to end.

Reference: reference/scale-and-ux.md section 11; stable-diffusion-webui modules/api/api.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from max_zimage.errors import RequestError
from max_zimage.images.a1111_masks import blurred, filled
from max_zimage.images.masks import decode_mask
from max_zimage.images.read import data_url_bytes, decode_image
from max_zimage.serving.drawn_by import written_parameters
from max_zimage.serving.http.a1111_arguments import arguments
from max_zimage.serving.http.a1111_body import (
    ELSEWHERE,
    IMG2IMG,
    NAMES,
    PNG_INFO,
    TXT2IMG,
    A1111Request,
    Img2ImgRequest,
)
from max_zimage.serving.http.a1111_info import info
from max_zimage.serving.http.answers import finished, picture_or_error
from max_zimage.serving.http.api_names import refused
from max_zimage.serving.http.remote_images import fetched, is_remote
from max_zimage.serving.http.requests import make_context, request_of
from max_zimage.serving.http.routes_images import described, json_body, parsed
from max_zimage.serving.http.state import ServerState, state_of
from max_zimage.serving.job import Job

router = APIRouter(prefix="/sdapi/v1")

_PREVIEWS = 3
_BLUR = 4.0  # pixels, of a mask where a request says nothing


@router.post("/txt2img", openapi_extra=described(TXT2IMG))
async def txt2img(request: Request) -> Response:
    """Draw pictures from a prompt."""
    state = state_of(request)
    state.check_room()
    body = parsed(TXT2IMG, await json_body(request), ELSEWHERE)
    values = arguments(body, state.served.name, state.served.tokenizer.defaults)
    return await _answered(state, request, body, values)


@router.post("/img2img", openapi_extra=described(IMG2IMG))
async def img2img(request: Request) -> Response:
    """Draw pictures from an image and a prompt."""
    state = state_of(request)
    state.check_room()
    body = parsed(IMG2IMG, await json_body(request), ELSEWHERE)
    values = arguments(body, state.served.name, state.served.tokenizer.defaults)
    image = await _file(state, "init_images", (body.init_images or [""])[0])
    mask = None if body.mask is None else await _file(state, "mask", body.mask)
    values |= await asyncio.to_thread(_pictures, body, image, mask, state.served.limits.input_pixels)
    return await _answered(state, request, body, values)


async def _file(state: ServerState, name: str, text: str) -> bytes:
    """The file that a body has as base64, as a data URL or by its address."""
    url = await fetched(state, name, text) if is_remote(text) else text
    try:
        return await asyncio.to_thread(file_of_text, name, url)
    except RequestError as error:
        raise refused(error, NAMES) from error


def file_of_text(name: str, text: str) -> bytes:
    """The file in base64, with or without what makes a data URL of it.

    Args:
        name: What messages call it.
        text: Its text.

    Raises:
        RequestError: If it is none.
    """
    return data_url_bytes(name, text if text.startswith("data:") else f"data:image/png;base64,{text}")


def _pictures(body: Img2ImgRequest, image: bytes, mask: bytes | None, most: int) -> dict[str, Any]:
    """The image, and the mask as it is to be taken."""
    try:
        pixels = decode_image("init_images", image, most)
        if mask is None:
            return {"image": pixels}
        shown = decode_mask("mask", mask, most)
    except RequestError as error:
        raise refused(error, NAMES) from error
    if body.inpainting_mask_invert:
        shown = 255 - shown
    if body.inpainting_fill != 1:
        pixels = filled(pixels, shown)
    usual = _BLUR if body.mask_blur is None else body.mask_blur
    across, down = (usual if each is None else each for each in (body.mask_blur_x, body.mask_blur_y))
    return {"image": pixels, "mask_image": blurred(shown, across, down)}


async def _answered(state: ServerState, request: Request, body: A1111Request, values: dict[str, Any]) -> Response:
    """Check a request, draw it and answer."""

    def prepared() -> Any:
        asked = request_of(state.served, NAMES, **values)
        metadata = (body.override_settings or {}).get(PNG_INFO)
        context = make_context(state.served, asked, "png", NAMES, metadata, reports=True, previews=_PREVIEWS)
        return context, [json.loads(text) for text in written_parameters(asked, state.served.drawn_by)]

    context, pictures = await asyncio.to_thread(prepared)
    job = await state.submit(context, request)
    state.note(job, None)
    with _current(state, job):
        output = await finished(state.dispatcher, job, request)
    files = [picture_or_error(item) for item in output.output]
    images = [base64.b64encode(file).decode() for file in files if body.send_images is not False]
    unsaid = {"url", "auth"} | (set() if getattr(body, "include_init_images", False) else {"init_images", "mask"})
    given = json.loads(body.model_dump_json(exclude=unsaid))  # by JSON, which has no NaN
    return JSONResponse({"images": images, "parameters": given, "info": info(pictures, given)})


@contextmanager
def _current(state: ServerState, job: Job) -> Iterator[None]:
    """A request among those of which clients speak as the current one, while it has no answer."""
    state.a1111_jobs.append(job)
    try:
        yield
    finally:
        state.a1111_jobs.remove(job)


@router.get("/progress")
async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """How far the current picture is, with a small one of it."""
    jobs = state_of(request).a1111_jobs
    told = jobs[0].progress if jobs else None
    share = told.step / told.steps if told else 0.0
    # From when it was queued: what it has waited for, others wait for too.
    left = (time.monotonic() - jobs[0].arrived) * (1 - share) / share if share else 0.0
    preview = jobs[0].preview if jobs and not skip_current_image else None
    return {
        "progress": share,
        "eta_relative": left,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": jobs[0].name if jobs else "",
            "job_count": len(jobs),
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": told.step if told else 0,
            "sampling_steps": told.steps if told else 0,
        },
        "current_image": None if preview is None else base64.b64encode(preview.png).decode(),
        "textinfo": None,
    }


@router.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """End the current request, whose own answer becomes an error; nothing happens where there is none."""
    state = state_of(request)
    for job in state.a1111_jobs[:1]:
        state.dispatcher.cancel(job, "api")
    return {}


@router.post("/skip")
async def skip(request: Request) -> dict[str, Any]:
    """The same: all pictures of a request are drawn together."""
    return await interrupt(request)
