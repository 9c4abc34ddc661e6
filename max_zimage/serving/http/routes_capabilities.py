"""What this server can draw, as data: models, limits, defaults, every field of a request; a page is made from it.

Nothing is declared here: fields come from `max_zimage.request.fields` and the bodies in `schema`, ranges from the
checkpoint and the server's limits, names from the registries of samplers, shapes, templates and adapters.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from max_zimage.request.described import default_of, schema_of, section_of
from max_zimage.request.fields import ROWS
from max_zimage.request.row import Row
from max_zimage.request.templates import Templates
from max_zimage.sampling.ranges import DEFAULT_STRENGTH
from max_zimage.serving.http.requests import ServedModel
from max_zimage.serving.http.schema import EDIT, GENERATION
from max_zimage.serving.http.state import ServerState, state_of
from max_zimage.version import __version__

router = APIRouter(prefix="/v1")

_LISTS = {
    "samplers": "sampler",
    "sigma_shapes": "sigma_shape",
    "guidance_variants": "guidance_variant",
    "long_prompt_modes": "long_prompt_mode",
    "dype_methods": "dype",
    "upscale_modes": "upscale",
    "vae_tilings": "vae_tiling",
    "noises": "noise",
}
"""Lists that clients look for, by the field whose words they are."""


@router.get("/capabilities")
async def capabilities(request: Request) -> dict[str, Any]:
    """The served model, limits, defaults, names of samplers and the like, features, and each field of a request."""
    state = state_of(request)
    fields = _fields(state.served)
    by_name = {each["name"]: each for each in fields}
    loras = list(state.served.tokenizer.limits.lora_files.names())
    return {
        "object": "capabilities",
        "version": __version__,
        "model": state.served.name,
        "limits": _limits(state.served),
        "defaults": {each["name"]: each["default"] for each in fields if each["default"] is not None},
        **{name: by_name[field]["schema"]["enum"] for name, field in _LISTS.items()},
        "step_caches": by_name["step_cache"]["schema"]["words"],
        "templates": _templates(state),
        "loras": loras,
        "enhancer": None if state.enhancer is None else state.enhancer.enhancer.name,
        "features": _features(state, by_name),
        "fields": fields,
    }


def _limits(served: ServedModel) -> dict[str, int | float]:
    """What a request may ask for; of the checkpoint and the server the narrower."""
    ours, model = served.limits, served.tokenizer.limits
    return {
        "pixels": ours.pixels,
        "width": model.max_width,
        "height": model.max_height,
        "multiple_of": schema_of(ROWS["height"].kind, model)["multipleOf"],
        "steps": min(ours.steps, model.max_steps),
        "n": min(ours.images, model.max_images),
        "prompt_characters": ours.prompt_characters,
        "prompt_tokens": model.max_tokens,
        "input_pixels": ours.input_pixels,
        "body_bytes": ours.body_bytes,
        "queue": ours.queue,
        "seconds": ours.seconds,
    }


def _features(state: ServerState, fields: dict[str, Any]) -> dict[str, bool]:
    """What is on: fields that there are, and what the server was started with."""
    settings = state.settings
    named = {
        "image_to_image": "image",
        "inpainting": "mask_image",
        "outpainting": "outpaint",
        "step_cache": "step_cache",
        "guidance_variants": "guidance_variant",
        "skip_layer_guidance": "slg_scale",
        "negative_prompt_without_guidance": "nag_scale",
        "passes": "passes",
        "large_pictures": "dype",
        "tiled_vae": "vae_tiling",
        "prompt_features": "features",
        "templates": "template",
    }
    return {
        **{feature: name in fields for feature, name in named.items()},
        "loras": settings.lora_folder is not None,
        "features_cache": settings.embedding_cache_bytes > 0,
        "shared_batches": settings.batch_pictures != 1,
        "remote_images": settings.allow_remote_images,
        "previews": True,
        "enhance": state.enhancer is not None,
        "chat": state.enhancer is not None and state.enhancer.chat_model is not None,
    }


def _templates(state: ServerState) -> list[dict[str, str]]:
    templates: Templates = state.served.tokenizer.defaults.templates
    found = sorted(templates.all.values(), key=lambda each: (each.category, each.name))
    return [{"name": each.name, "category": each.category, "description": each.description} for each in found]


def _fields(served: ServedModel) -> list[dict[str, Any]]:
    """Each field of the image routes: OpenAI's own first, as their schema has them, then those of the table."""
    rows = {row.images.name: row for row in ROWS.values() if row.images and row.images.name in EDIT.model_fields}
    properties: dict[str, Any] = EDIT.model_json_schema()["properties"]
    again = {other for row in rows.values() if row.images for other in row.images.others}  # a field by another name
    own = [_of_schema(name, each) for name, each in properties.items() if name not in rows and name not in again]
    found = own + [_of_row(served, row, properties[name]) for name, row in rows.items()]
    defaults = served.tokenizer.defaults
    # What stands for more than one field, or depends on another one, or on the server.
    usual: dict[str, Any] = {"size": f"{defaults.width}x{defaults.height}", "strength": DEFAULT_STRENGTH}
    usual |= {"output_format": "png", "metadata": served.metadata}
    for each in found:
        each["default"] = usual.get(each["name"], each["default"])
    return [each for each in found if each["schema"].get("type") != "null"]


def _of_schema(name: str, described: dict[str, Any]) -> dict[str, Any]:
    """A field that OpenAI's API has and the table has not."""
    kinds = [each for each in described.get("anyOf", [described]) if each.get("type") != "null"]
    schema = {key: value for key, value in (kinds or [{"type": "null"}])[0].items() if key not in ("title", "default")}
    return {
        "name": name,
        "schema": schema,
        "default": None,
        "help": described.get("description", ""),
        "section": "",
        "flag": None,
        "routes": _routes(name),
    }


def _of_row(served: ServedModel, row: Row, described: dict[str, Any]) -> dict[str, Any]:
    """A field of the table, with the server's limits where these are narrower than the checkpoint's."""
    assert row.images is not None
    limits = served.tokenizer.limits
    schema = schema_of(row.kind, limits)
    ours = {
        "num_inference_steps": {"maximum": served.limits.steps},
        "num_images_per_prompt": {"maximum": served.limits.images},
        "prompt": {"maxLength": served.limits.prompt_characters},
        "negative_prompt": {"maxLength": served.limits.prompt_characters},
    }.get(row.argument, {})
    for key, most in ours.items():
        schema[key] = min(most, schema.get(key, most))
    if row.argument == "template":
        schema["enum"] = sorted(served.tokenizer.defaults.templates.all)
    return {
        "name": row.images.name,
        "schema": schema,
        "default": default_of(row, limits, served.tokenizer.defaults),
        "help": row.images.description or described.get("description", "") or (row.flag.help if row.flag else ""),
        "section": section_of(row),
        "flag": row.flag.name if row.flag and row.flag.group else None,
        "routes": _routes(row.images.name),
    }


def _routes(name: str) -> list[str]:
    models = {"generations": GENERATION, "edits": EDIT}
    return [f"/v1/images/{route}" for route, model in models.items() if name in model.model_fields]
