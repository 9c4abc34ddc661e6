"""AUTOMATIC1111's routes, `/sdapi/v1/txt2img` and `img2img`, and what tells of them and ends them.

Its clients speak of the picture that is drawn as if there were one at a time. Here that is the oldest request of these
routes that is being drawn, on whichever replica, or the oldest that waits; requests of other routes are not theirs to
end.

Reference: reference/scale-and-ux.md section 11; stable-diffusion-webui modules/api/api.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from max_zimage.errors import RequestError
from max_zimage.images.infotext import write_infotext
from max_zimage.request.request import GenerationRequest
from max_zimage.serving.drawn_by import written_parameters
from max_zimage.serving.http.a1111_arguments import arguments
from max_zimage.serving.http.a1111_body import (
    ELSEWHERE,
    IMG2IMG,
    NAMES,
    PNG_INFO,
    TXT2IMG,
    A1111Request,
)
from max_zimage.serving.http.a1111_info import info
from max_zimage.serving.http.a1111_pictures import Files, Put, file_of_text, pictures_of
from max_zimage.serving.http.answers import finished, picture_or_error
from max_zimage.serving.http.api_names import refused
from max_zimage.serving.http.media import reached
from max_zimage.serving.http.remote_images import fetched, is_remote
from max_zimage.serving.http.requests import carries_metadata, make_context
from max_zimage.serving.http.routes_images import described, json_body, parsed
from max_zimage.serving.http.state import ServerState, state_of

router = APIRouter(prefix="/sdapi/v1")

_PREVIEWS = 3


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
    files = Files(
        image=await _file(state, "init_images", (body.init_images or [""])[0]),
        mask=None if body.mask is None else await _file(state, "mask", body.mask),
    )
    limits, defaults = state.served.limits, state.served.tokenizer.defaults
    values, put = await asyncio.to_thread(pictures_of, body, files, values, limits, defaults)
    return await _answered(state, request, body, values, put)


async def _file(state: ServerState, name: str, text: str) -> bytes:
    """The file that a body has as base64, as a data URL or by its address."""
    url = await fetched(state, name, text) if is_remote(text) else text
    try:
        return await asyncio.to_thread(file_of_text, name, url)
    except RequestError as error:
        raise refused(error, NAMES) from error


async def _answered(
    state: ServerState, request: Request, body: A1111Request, values: dict[str, Any], put: Put | None = None
) -> Response:
    """Check a request, draw it, put it back where it is a part, and answer."""
    wish = (body.override_settings or {}).get(PNG_INFO)
    said = put.said if put else {}
    asked = await state.request_of(NAMES, values)
    pictures: list[dict[str, Any]] = []

    def prepared(drawn: GenerationRequest) -> Any:
        # A part is no picture of its own, and says nothing before it is put back.
        metadata = wish if put is None else False
        pictures.extend(json.loads(text) for text in written_parameters(drawn, state.served.drawn_by))
        return make_context(state.served, drawn, "png", NAMES, metadata, reports=True, previews=_PREVIEWS)

    def put_back(files: list[bytes]) -> list[bytes]:
        if put is None:
            return files
        texts = [write_infotext(each, said) if carries else None for each in pictures]
        return [put.back(file, text) for file, text in zip(files, texts, strict=True)]

    carries = carries_metadata(state.served, wish)

    revision, job = await state.submit_enhanced(asked, NAMES, prepared, request)
    state.note(job, None)
    with state.records.currents.known(job):
        output = await finished(state.dispatcher, job, request)
    files = await asyncio.to_thread(put_back, [picture_or_error(item) for item in output.output])
    images = [base64.b64encode(file).decode() for file in files if body.send_images is not False]
    unsaid = {"url", "auth"} | (set() if getattr(body, "include_init_images", False) else {"init_images", "mask"})
    given = json.loads(body.model_dump_json(exclude=unsaid))  # by JSON, which has no NaN
    answer = {"images": images, "parameters": given, "info": info(pictures, given, said)}
    return JSONResponse(answer, headers=revision.headers)


@router.get("/progress")
async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """How far the current picture is, with a small one of it; on whichever replica it is drawn."""
    state = state_of(request)
    with reached(state.metrics):
        found = await state.records.currents.all()
    first = found[0] if found else None
    share = first.step / first.steps if first and first.steps else 0.0
    preview = first.preview if first and not skip_current_image else b""
    return {
        "progress": share,
        # From when it was queued: what it has waited for, others wait for too.
        "eta_relative": first.seconds * (1 - share) / share if first and share else 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": first.name if first else "",
            "job_count": len(found),
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": first.step if first else 0,
            "sampling_steps": first.steps if first else 0,
        },
        "current_image": base64.b64encode(preview).decode() if preview else None,
        "textinfo": None,
    }


@router.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """End the current request, whose own answer becomes an error; nothing happens where there is none."""
    state = state_of(request)
    with reached(state.metrics):
        await state.records.currents.cancel()
    return {}


@router.post("/skip")
async def skip(request: Request) -> dict[str, Any]:
    """The same: all pictures of a request are drawn together."""
    return await interrupt(request)
