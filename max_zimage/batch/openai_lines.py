"""Lines of OpenAI's batch files: the bodies of its image routes, as this project's server takes them.

Reference: OpenAI's Batch API, the request input object; openai/types/batch_create_params.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from max_zimage.batch.pictures_in import TRANSPARENCY
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.image_fields import size_of, steps_of
from max_zimage.serving.http.routes_images import parsed
from max_zimage.serving.http.schema import EDIT, GENERATION, EditRequest, ImageRequest, given

_ROUTES: dict[str, type[ImageRequest]] = {"/v1/images/generations": GENERATION, "/v1/images/edits": EDIT}
_KEYS = frozenset({"method", "url", "body"})
_NO_MEANING: dict[str, tuple[object, ...]] = {
    "stream": (False,),
    "progress": (False,),
    "partial_images": (0,),
    "response_format": ("b64_json",),
    "output_format": ("png",),
    "output_compression": (100,),
    "metadata": (True,),
}
"""Fields that say how an answer comes -> values that mean what a job does anyway."""


def values_of_line(fields: Mapping[str, Any], model: str, usual_steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a line asks for.

    Args:
        fields: Of the line, without its custom_id.
        model: What the job draws with, as it was named.
        usual_steps: The checkpoint's own, of which `quality` makes more or fewer.

    Returns:
        Arguments of a request, and the sources of its pictures, as `read_pictures` takes them.

    Raises:
        ValueError: With what is wrong.
    """
    if unknown := sorted(fields.keys() - _KEYS):
        raise ValueError(f"{unknown[0]}: a line has custom_id, method, url and body; leave it out")
    if fields.get("method") != "POST":
        raise ValueError(f"method: must be POST, got {fields.get('method')!r}")
    schema = _ROUTES.get(str(fields.get("url")))
    if schema is None:
        raise ValueError(f"url: must be {' or '.join(_ROUTES)}, got {fields.get('url')!r}")
    try:
        body = parsed(schema, json.dumps(fields.get("body")).encode())
        if body.model not in (None, model):
            raise ValueError(f"model: this job draws with {model}, got {body.model!r}; leave it out, or give --model")
        return _values(body, usual_steps)
    except ApiError as error:
        raise ValueError(str(error)) from error


def _values(body: ImageRequest, usual_steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    for name, meant in _NO_MEANING.items():
        value = getattr(body, name)
        if value is not None and value not in meant:
            raise ValueError(f"{name}: a job makes PNG files with their parameters and has no use for it; leave it out")
    values = given(body)
    if body.prompt is None or "features" in values:
        raise ValueError("prompt: a job draws from prompts; give a string")
    height, width = size_of(body.size)
    values |= {"prompt": body.prompt, "height": height, "width": width, "num_images_per_prompt": body.n}
    values["num_inference_steps"] = steps_of(body, usual_steps)
    sources = _sources(body) if isinstance(body, EditRequest) else {}
    return {name: value for name, value in values.items() if value is not None}, sources


def _sources(body: EditRequest) -> dict[str, Any]:
    images = [body.image] if isinstance(body.image, str) else body.image
    if len(images) != 1:
        raise ValueError(f"image: one image may be given, got {len(images)}; leave the others out")
    if body.mask is not None and body.mask_image is not None:
        raise ValueError("mask: mask_image is given too, which goes by brightness; leave one out")
    named = {"image": images[0], TRANSPARENCY: body.mask, "mask_image": body.mask_image}
    found = {name: value for name, value in named.items() if value is not None}
    for name, value in found.items():
        if not value.startswith("data:"):
            raise ValueError(f'{name}: must be a data URL, "data:image/png;base64,...", got {value[:40]!r}')
    return found
