"""What a picture was drawn with, read from its file for clients that cannot: `POST /v1/parameters`."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from max_zimage.errors import RequestError
from max_zimage.images.files import check_picture
from max_zimage.images.read import data_url_bytes
from max_zimage.images.texts import ImageFileError
from max_zimage.request.described import of_parameters
from max_zimage.request.fields import ROWS
from max_zimage.request.loras import SUFFIX
from max_zimage.request.metadata import UNKNOWN_IMAGE, GenerationParameters
from max_zimage.request.other_tools import OtherParameters, read_any
from max_zimage.serving.errors import bad_request
from max_zimage.serving.http.api_names import IMAGES, refused
from max_zimage.serving.http.routes_images import described, json_body, parsed
from max_zimage.serving.http.schema import EDIT
from max_zimage.serving.http.state import state_of

router = APIRouter(prefix="/v1")

_SIZE = ("height", "width")
_OF_IMAGE = ("image_digest", "image_height", "image_width", "mask_digest")
_FLAG = re.compile(r"--[a-z][a-z-]*")
_FIELDS = {row.flag.name: row.images.name for row in ROWS.values() if row.flag and row.images}
"""What the command line calls a field -> what these routes call it."""


class ParametersRequest(BaseModel):
    """A picture."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: Annotated[str, Field(description="A data URL of a PNG, JPEG or WebP file.")]


@router.post("/parameters", openapi_extra=described(ParametersRequest))
async def parameters(request: Request) -> dict[str, Any]:
    """Read what a picture was drawn with, by this program or one that writes as stable-diffusion-webui does.

    Answers `parameters`, all that is read; `request`, the same as fields of the image routes, those of edits where
    `needs` says something; `left_out`, what those have no field for; `needs`, the image and the mask that it began
    with, which no picture holds; and `notes`, sentences about what is not the same here.
    """
    state = state_of(request)
    body = parsed(ParametersRequest, await json_body(request))
    try:
        found = await asyncio.to_thread(_read, body.image, state.served.limits.input_pixels)
    except RequestError as error:
        said = refused(error, IMAGES)
        raise bad_request(_FLAG.sub(lambda match: _FIELDS.get(match[0], match[0]), str(said)), "image") from error
    except ImageFileError as error:
        raise bad_request(f"image: {error}", "image") from error
    return _answer(found)


def _answer(found: GenerationParameters | OtherParameters) -> dict[str, Any]:
    if isinstance(found, OtherParameters):
        loras = [{"name": f"{each.name}{SUFFIX}", "scale": each.scale} for each in found.loras]
        values = found.values | ({"loras": loras} if loras else {})
        # That there was an image is all that such a text says of it.
        needs = {"image_digest": UNKNOWN_IMAGE} if found.is_from_image else {}
    else:
        values = asdict(found)
        needs = {name: values[name] for name in _OF_IMAGE if values.get(name) is not None}
    said = of_parameters(values, ROWS)
    return {
        "object": "parameters",
        "parameters": values,
        "request": _fields_of(said),
        "left_out": {name: value for name, value in said.items() if name not in _SIZE and _field(name) is None},
        "needs": needs,
        "notes": list(found.notes) if isinstance(found, OtherParameters) else [],
    }


def _fields_of(said: dict[str, Any]) -> dict[str, Any]:
    """Parameters as a body of the image routes has them."""
    body = {field: value for name, value in said.items() if (field := _field(name)) is not None}
    if set(_SIZE) <= said.keys():
        body["size"] = f"{said['width']}x{said['height']}"
    if "loras" in body:  # by name, as this server's folder has them; a digest is no field of a request
        body["loras"] = [{"name": each["name"], "scale": each["scale"]} for each in body["loras"]]
    return body


def _field(argument: str) -> str | None:
    """What the image routes call a field, if they have it."""
    row = ROWS[argument]
    name = None if row.images is None else row.images.name
    return name if name in EDIT.model_fields else None


def _read(url: str, max_pixels: int) -> GenerationParameters | OtherParameters:
    """Read a data URL's file.

    Raises:
        RequestError: If it is no picture that may be sent, or another tool's that cannot be drawn here.
        ImageFileError: If it holds no parameters.
    """
    content = data_url_bytes("image", url)
    check_picture("image", content, max_pixels)
    return read_any(content, given=("image",))  # which is named in `needs`
