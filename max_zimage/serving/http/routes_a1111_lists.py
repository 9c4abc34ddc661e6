"""AUTOMATIC1111's routes about what there is: samplers, models, adapters, settings; and what a picture says of itself.

Reference: reference/scale-and-ux.md section 11; stable-diffusion-webui modules/api/api.py.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from max_zimage.device.memory import available_memory
from max_zimage.errors import RequestError
from max_zimage.images.files import check_picture
from max_zimage.images.infotext import read_infotext, write_infotext
from max_zimage.images.texts import ImageFileError, embedded_text
from max_zimage.request.a1111_names import AUTOMATIC, SAMPLER_LABELS, SHAPE_LABELS, key_of
from max_zimage.request.loras import SUFFIX
from max_zimage.request.metadata import GenerationParameters, is_own
from max_zimage.serving.errors import bad_request, together
from max_zimage.serving.http.a1111_arguments import UPSCALERS
from max_zimage.serving.http.a1111_body import PNG_INFO, SETTINGS, setting_problems
from max_zimage.serving.http.a1111_pictures import file_of_text
from max_zimage.serving.http.api_names import IMAGES, refused
from max_zimage.serving.http.routes_images import described, json_body, parsed
from max_zimage.serving.http.state import state_of

router = APIRouter(prefix="/sdapi/v1")


@router.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """Samplers, by their names there where they have one."""
    return [{"name": label, "aliases": [key_of(label)], "options": {}} for label in SAMPLER_LABELS.values()]


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """Sigma shapes, the checkpoint's own before them."""
    return [
        {"name": key_of(label), "label": label, "aliases": None, "default_rho": -1, "need_inner_model": False}
        for label in (AUTOMATIC, *SHAPE_LABELS.values())
    ]


@router.get("/sd-models")
async def models(request: Request) -> list[dict[str, Any]]:
    """The served model."""
    name = state_of(request).served.name
    return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]


@router.get("/loras")
async def loras(request: Request) -> list[dict[str, Any]]:
    """The adapters of `--lora-folder`, as prompts name them."""
    names = state_of(request).served.tokenizer.limits.lora_files.names()
    stems = [(name, name.removesuffix(SUFFIX)) for name in names]
    return [{"name": stem, "alias": stem, "path": name, "metadata": {}} for name, stem in stems]


@router.get("/prompt-styles")
async def styles(request: Request) -> list[dict[str, Any]]:
    """The templates, which `styles` names; their texts are system messages."""
    found = state_of(request).served.tokenizer.defaults.templates.all.values()
    return [{"name": each.name, "prompt": each.system, "negative_prompt": ""} for each in found]


@router.get("/upscalers")
async def upscalers() -> list[dict[str, Any]]:
    """Upscalers of pictures between two passes; clients look for none at the first place."""
    names = ["None", *(name for name in UPSCALERS if not name.startswith("Latent"))]
    return [{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in names]


@router.get("/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, str]]:
    """The same of latents."""
    return [{"name": name} for name in UPSCALERS if name.startswith("Latent")]


@router.get("/sd-vae")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/script-info")
async def nothing() -> list[Any]:
    """What there is none of here."""
    return []


@router.get("/embeddings")
async def embeddings() -> dict[str, Any]:
    """Textual inversions: none."""
    return {"loaded": {}, "skipped": {}}


@router.get("/scripts")
async def scripts() -> dict[str, Any]:
    """Scripts: none."""
    return {"txt2img": [], "img2img": []}


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """Flags that the server was started with, as far as they are anybody's business."""
    return {"api": True}


@router.get("/memory")
async def memory() -> dict[str, Any]:
    """Bytes of the machine's memory."""
    total, free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), available_memory()
    return {
        "ram": {"free": free, "used": max(0, total - free), "total": total},
        "cuda": {"error": "the model has a process of its own, and /metrics its figures"},
    }


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
@router.post("/refresh-vae")
async def refresh() -> None:
    """Nothing is to be done: the folder is looked into whenever it is asked for."""


@router.get("/options")
async def options(request: Request) -> dict[str, Any]:
    """The settings that clients look for."""
    served = state_of(request).served
    model = {"sd_model_checkpoint": served.name, "sd_checkpoint_hash": ""}
    return model | {name: values[0] for name, values in SETTINGS.items()} | {PNG_INFO: served.metadata}


@router.post("/options")
async def set_options(request: Request) -> Response:
    """Take settings that say what is so; others are refused, for a request of one client would change another's."""
    try:
        settings = json.loads(await json_body(request))
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise bad_request(f"the body must be an object of settings, got {type(settings).__name__}")
    problems = setting_problems(settings, state_of(request).served.name, "options")
    if problems:
        raise bad_request(together([sentence for _, sentence in problems]))
    return JSONResponse(None)


class PngInfoRequest(BaseModel):
    """A picture."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: Annotated[str, Field(description="Base64 of its file, or a data URL.")]


@router.post("/png-info", openapi_extra=described(PngInfoRequest))
async def png_info(request: Request) -> dict[str, Any]:
    """What a picture was drawn with, by this program or one that writes the same text; empty if it does not say."""
    body = parsed(PngInfoRequest, await json_body(request))
    most = state_of(request).served.limits.input_pixels
    try:
        return await asyncio.to_thread(_said_by, body.image, most)
    except RequestError as error:
        raise refused(error, IMAGES) from error


def _said_by(image: str, most: int) -> dict[str, Any]:
    """Arguments: a picture as `PngInfoRequest` has it, and how many pixels it may have."""
    content = file_of_text("image", image)
    check_picture("image", content, most)
    text = ""
    with suppress(ImageFileError):
        text = embedded_text(content)
    if is_own(text):
        with suppress(ImageFileError):  # other JSON is told as it stands
            text = write_infotext(json.loads(GenerationParameters.from_json(text).to_json()))
    found = read_infotext(text)
    if found is None:
        return {"info": text, "items": {}, "parameters": {}}
    said = {"Prompt": found.prompt, "Negative prompt": found.negative_prompt, **found.pairs}
    return {"info": text, "items": {"parameters": text}, "parameters": said}
