"""What a picture was drawn with, read from its file for clients that cannot: `POST /v1/parameters`."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from max_zimage.errors import RequestError
from max_zimage.images.files import check_size, open_image
from max_zimage.images.read import data_url_bytes
from max_zimage.images.save import ImageFileError
from max_zimage.request.described import of_parameters
from max_zimage.request.fields import ROWS
from max_zimage.request.metadata import GenerationParameters, read_parameters
from max_zimage.serving.errors import bad_request
from max_zimage.serving.http.api_names import IMAGES, refused
from max_zimage.serving.http.routes_images import described, json_body, parsed
from max_zimage.serving.http.schema import EDIT
from max_zimage.serving.http.state import state_of

router = APIRouter(prefix="/v1")

_SIZE = ("height", "width")
_OF_IMAGE = ("image_digest", "image_height", "image_width", "mask_digest")


class ParametersRequest(BaseModel):
    """A picture."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: Annotated[str, Field(description="A data URL of a PNG, JPEG or WebP file.")]


@router.post("/parameters", openapi_extra=described(ParametersRequest))
async def parameters(request: Request) -> dict[str, Any]:
    """Read what a picture was drawn with.

    Answers `parameters`, all that the picture holds; `request`, the same as fields of the image routes; `left_out`,
    what those have no field for; and `needs`, the image and the mask that it began with, which no picture holds.
    """
    state = state_of(request)
    body = parsed(ParametersRequest, await json_body(request))
    try:
        found = await asyncio.to_thread(_read, body.image, state.served.limits.input_pixels)
    except RequestError as error:
        raise refused(error, IMAGES) from error
    except ImageFileError as error:
        raise bad_request(f"image: {error}", "image") from error
    values = asdict(found)
    said = of_parameters(values, ROWS)
    return {
        "object": "parameters",
        "parameters": values,
        "request": _fields_of(said),
        "left_out": {name: value for name, value in said.items() if name not in _SIZE and _field(name) is None},
        "needs": {name: values[name] for name in _OF_IMAGE if values.get(name) is not None},
    }


def _fields_of(said: dict[str, Any]) -> dict[str, Any]:
    """Parameters as a body of the image routes has them."""
    body = {field: value for name, value in said.items() if (field := _field(name)) is not None}
    body["size"] = f"{said['width']}x{said['height']}"
    if "loras" in body:  # by name, as this server's folder has them; a digest is no field of a request
        body["loras"] = [{"name": each["name"], "scale": each["scale"]} for each in body["loras"]]
    return body


def _field(argument: str) -> str | None:
    """What the image routes call a field, if they have it."""
    row = ROWS[argument]
    name = None if row.images is None else row.images.name
    return name if name in EDIT.model_fields else None


def _read(url: str, max_pixels: int) -> GenerationParameters:
    """Read a data URL's file.

    Raises:
        RequestError: If it is no picture that may be sent.
        ImageFileError: If it holds no parameters.
    """
    content = data_url_bytes("image", url)
    picture, _ = open_image("image", content, max_pixels)
    with picture:
        check_size("image", *picture.size, max_pixels)
    folder = tempfile.gettempdir()
    os.makedirs(folder, exist_ok=True)  # the server's own, which may have been swept
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place) / "picture"
        file.write_bytes(content)
        try:
            return read_parameters(file)
        except ImageFileError as error:
            said = str(error).replace(f"{file}: ", "").replace(str(file), "the picture")
            raise ImageFileError(said) from error
