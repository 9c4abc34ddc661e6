"""llm-dit's routes, `POST /api/generate` and those beside it: its fields, its defaults, its headers.

The fields are rows of the table by the names that OpenAI's routes have them under too; where llm-dit names a default,
it is the one here, whatever the checkpoint's is. What it has beyond them is refused by name.

Reference: reference/generation.md section 11 (Web API); llm-dit web/schemas.py, web/routers/core.py.
"""

from __future__ import annotations

import asyncio
import time
from types import MappingProxyType
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.responses import JSONResponse, Response

from max_zimage.errors import RequestError, Wording
from max_zimage.pipeline.encoding import request_of_texts
from max_zimage.request.fields import IMAGES as WORDS
from max_zimage.request.fields import ROWS
from max_zimage.request.passes import TOKEN_SIDE
from max_zimage.serving.errors import bad_request
from max_zimage.serving.http.answers import finished, picture_or_error
from max_zimage.serving.http.api_names import ApiNames, refused
from max_zimage.serving.http.requests import ServedModel, check_texts, make_context
from max_zimage.serving.http.routes_features import encoding
from max_zimage.serving.http.routes_images import described, json_body, parsed
from max_zimage.serving.http.state import state_of
from max_zimage.serving.worker.prompt_features import read_features
from max_zimage.text.tokenizer import Around, TokenizerError

router = APIRouter(prefix="/api")

DEFAULTS = MappingProxyType(
    {
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 9,
        "guidance_scale": 0.0,
        "cfg_normalization": 0.0,
        "cfg_truncation": 1.0,
        "shift": 3.0,
        "long_prompt_mode": "interpolate",
        "hidden_layer": -2,
    }
)
"""Argument -> what llm-dit draws with where a request says nothing."""

_TEXTS = ("template", "system_prompt", "thinking_content", "assistant_content")
_NUMBERS = (*DEFAULTS, "seed", "slg_scale", "slg_layers", "slg_start", "slg_stop")

_REWARDS = "is guidance by another model's reward, which takes gradients and is not done here; leave it out"
_VISION = "is conditioning by a vision model, which is not done here; leave it out"
_SEVERAL = "is no field of llm-dit's /api/generate; /v1/images/generations has it"
_ELSEWHERE = MappingProxyType(
    dict.fromkeys(
        (f"fmtt_{name}" for name in (
            "enabled", "scale", "start", "stop", "normalize", "decode_scale", "siglip_model", "siglip_device",
        )),
        _REWARDS,
    )
    | dict.fromkeys(
        (f"vl_{name}" for name in (
            "image", "embeddings_id", "alpha", "hidden_layer", "image_tokens_only", "text", "blend_mode",
        )),
        _VISION,
    )
    | dict.fromkeys(("negative_prompt", "sampler", "sigma_shape", "loras", "n", "step_cache"), _SEVERAL)
    | dict.fromkeys(("dynamic_shift", "shift_terminal"), _SEVERAL)
    | {
        "image": "is no field of llm-dit's /api/generate; /v1/images/edits takes images",
        "strength": "is no field of llm-dit's /api/generate; /v1/images/edits takes images",
        "layer_weights": "is no field of this route; hidden_layer takes weights by layer",
    }
)  # fmt: skip
"""Fields that users of llm-dit know, and what to do instead."""


class Dype(BaseModel):
    """Position extrapolation and the passes that llm-dit puts with it; nothing of it counts unless it is enabled."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    enabled: bool = False
    method: Annotated[str, Field(description="vision_yarn, yarn or ntk.")] = "vision_yarn"
    multipass: Annotated[
        Literal["single", "twopass", "threepass"],
        Field(description="Passes of half, or a quarter and half, the sides."),
    ] = "twopass"
    dype_scale: float = 2.0
    dype_exponent: float = 2.0
    base_shift: Annotated[float, Field(description="Not used: shift is what counts. 0.5 alone is taken.")] = 0.5
    max_shift: Annotated[float, Field(description="Not used: shift is what counts. 1.15 alone is taken.")] = 1.15
    pass2_strength: float = 0.5
    pass3_strength: float = 0.4


class TextsRequest(BaseModel):
    """A prompt and what stands around it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str, Field(description="What to show.")]
    force_think_block: Annotated[bool, Field(description="Taken with thinking_content, where it changes nothing.")] = (
        False
    )
    strip_quotes: Annotated[bool, Field(description="Take every double quote out of the texts.")] = False


class GenerateRequest(TextsRequest):
    """What `/api/generate` takes."""

    dype: Annotated[Dype | None, Field(description="Position extrapolation.")] = None


def _with_rows(base: type[BaseModel], names: tuple[str, ...]) -> Any:
    """A body with rows of the table, by the names of OpenAI's routes."""
    fields: dict[str, Any] = {}
    for row in (ROWS[name] for name in names):
        assert row.images is not None
        kind: Any = (row.kind.schema or row.kind.plain) | None
        about = row.images.description or "Pixels, a multiple of 16."
        fields[row.images.name] = (Annotated[kind, Field(description=about)], None)
    return create_model(base.__name__, __base__=base, __module__=__name__, __doc__=base.__doc__, **fields)


TEXTS: type[TextsRequest] = _with_rows(TextsRequest, _TEXTS)
GENERATE: type[GenerateRequest] = _with_rows(GenerateRequest, (*_TEXTS, *_NUMBERS))
"""The bodies as the routes take them."""

NAMES = ApiNames(
    wording=Wording(WORDS.names, {"asks": "width and height ask", "own size": "leave both out"}),
    blamed={"passes": "dype", "dype_scale": "dype", "dype_exponent": "dype"},
    known=frozenset(GENERATE.model_fields),
    guides="set guidance_scale above 0",
)
"""How these routes speak."""


@router.post("/generate", openapi_extra=described(GENERATE))
async def generate(request: Request) -> Response:
    """Draw a picture: a PNG, with its seed and the seconds that it took in headers."""
    begun, state = time.perf_counter(), state_of(request)
    state.check_room()
    body = parsed(GENERATE, await json_body(request), _ELSEWHERE)

    asked = await state.request_of(NAMES, arguments(body))
    revision, job = await state.submit_enhanced(
        asked, NAMES, lambda drawn: make_context(state.served, drawn, "png", NAMES), request
    )
    state.note(job, None)
    output = await finished(state.dispatcher, job, request)
    headers = {"X-Generation-Time": f"{time.perf_counter() - begun:.2f}", "X-Seed": str(job.context.seed)}
    headers |= revision.headers
    return Response(picture_or_error(output.output[0]), media_type="image/png", headers=headers)


def arguments(body: GenerateRequest) -> dict[str, Any]:
    """What a request says, as arguments of `GenerationRequest.create`.

    Raises:
        ApiError: 400 if something cannot be done.
    """
    given = {name: getattr(body, row.images.name) for name in _NUMBERS if (row := ROWS[name]).images is not None}
    said = {name: value for name, value in given.items() if value is not None}
    values: dict[str, Any] = dict(DEFAULTS) | said | _texts(body)
    if body.dype is None or not body.dype.enabled:
        return values
    if (body.dype.base_shift, body.dype.max_shift) != (0.5, 1.15):
        raise bad_request(
            "dype: base_shift and max_shift do nothing, the shift is that of shift; leave both out", "dype"
        )
    values |= {name: getattr(body.dype, name) for name in ("dype_scale", "dype_exponent")} | {"dype": body.dype.method}
    return values | _passes(body.dype, values["num_inference_steps"])


def _passes(dype: Dype, steps: int) -> dict[str, Any]:
    """The passes that llm-dit draws in where position extrapolation is on."""
    if dype.multipass == "single":
        return {}
    shares = [(0.5, 1.0), (1.0, dype.pass2_strength)]
    if dype.multipass == "threepass":
        shares = [(0.25, 1.0), (0.5, dype.pass2_strength), (1.0, dype.pass3_strength)]
    first, *others = shares
    passes: list[dict[str, Any]] = [{"scale": first[0], "steps": steps}]
    return {"passes": passes + [{"scale": scale, "steps": steps, "strength": share} for scale, share in others]}


def _texts(body: TextsRequest) -> dict[str, Any]:
    """The prompt and what stands around it, as arguments.

    Raises:
        ApiError: 400 if an empty block of thoughts is asked for.
    """
    texts = {name: getattr(body, name) for name in ("prompt", *_TEXTS)}
    if body.force_think_block and not texts["thinking_content"]:
        message = (
            "force_think_block: an empty block of thoughts is not written here; give thinking_content, or leave it out"
        )
        raise bad_request(message, "force_think_block")
    if body.strip_quotes:
        texts |= {name: text.replace('"', "") for name, text in texts.items() if text and name != "template"}
    return {name: text for name, text in texts.items() if text is not None}


@router.post("/encode", openapi_extra=described(TEXTS))
async def encode(request: Request) -> Response:
    """Encode a prompt, and say what came of it; `/v1/prompt-features` answers the features themselves."""
    begun, state = time.perf_counter(), state_of(request)
    state.check_room()
    body = parsed(TEXTS, await json_body(request), _ELSEWHERE)
    texts = _texts(body)
    formatted, _ = await asyncio.to_thread(_formatted, state.served, texts)
    settings = {name: texts.get(name) for name in _TEXTS} | {"long_prompt_mode": DEFAULTS["long_prompt_mode"]}
    context = await asyncio.to_thread(encoding, state.served, NAMES, texts["prompt"], None, settings)
    job = await state.submit(context, request)
    state.note_texts(job, None)
    features = await asyncio.to_thread(read_features, await finished(state.dispatcher, job, request))
    answer = {
        "shape": list(features.positive.shape),
        "dtype": str(features.positive.dtype),
        "encode_time": time.perf_counter() - begun,
        "token_count": features.tokens,
        "prompt": body.prompt,
        "formatted_prompt": formatted,
    }
    return JSONResponse(answer)


@router.post("/format-prompt", openapi_extra=described(TEXTS))
async def format_prompt(request: Request) -> Response:
    """The text that is tokenized for a prompt."""
    served = state_of(request).served
    body = parsed(TEXTS, await json_body(request), _ELSEWHERE)
    texts = _texts(body)
    formatted, tokens = await asyncio.to_thread(_formatted, served, texts)
    answer = {
        "formatted_prompt": formatted,
        "char_count": len(formatted),
        "token_count": tokens,
        "max_tokens": served.tokenizer.limits.max_tokens,
    }
    return JSONResponse(answer)


def _formatted(served: ServedModel, texts: dict[str, Any]) -> tuple[str, int]:
    """The text that is tokenized for a prompt, and how many tokens it has.

    Raises:
        ApiError: 400 if it cannot be.
    """
    settings = {name: text for name, text in texts.items() if name != "prompt"}
    try:
        asked = request_of_texts(served.tokenizer, texts["prompt"], None, **settings)
        check_texts(served.limits, asked, NAMES)
        around = Around(system=asked.system_prompt, thinking=asked.thinking_content, assistant=asked.assistant_content)
        text = served.tokenizer.prompts.render(texts["prompt"], around)
        return text, len(served.tokenizer.prompts.encode(texts["prompt"], around))
    except (RequestError, TokenizerError) as error:
        raise refused(error, NAMES) from error


@router.get("/templates")
async def templates(request: Request) -> dict[str, Any]:
    """The templates that a request may name."""
    found = state_of(request).served.tokenizer.defaults.templates.all
    listed = [
        {"name": each.name, "category": each.category, "description": each.description} for each in found.values()
    ]
    return {"templates": listed}


@router.get("/generation-config")
async def generation_config() -> dict[str, Any]:
    """What `/api/generate` draws with where a request says nothing."""
    return {row.images.name: value for name, value in DEFAULTS.items() if (row := ROWS[name]).images is not None}


@router.get("/resolution-config")
async def resolution_config(request: Request) -> dict[str, Any]:
    """Which sizes may be asked for."""
    served = state_of(request).served
    limits = served.tokenizer.limits
    return {
        "vae_multiple": TOKEN_SIDE,
        "min_resolution": TOKEN_SIDE,
        "max_resolution": max(limits.max_height, limits.max_width),
        "max_pixels": served.limits.pixels,
        "default_width": DEFAULTS["width"],
        "default_height": DEFAULTS["height"],
        "supports_dype": True,
        "supports_slg": True,
        "supports_fmtt": False,
    }
