"""Features of prompts over HTTP: encoded here, drawn from later or by another server."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.responses import JSONResponse, Response

from max_zimage.errors import RequestError
from max_zimage.pipeline.context import ZImageContext
from max_zimage.pipeline.encoding import request_of_texts
from max_zimage.request.feature_settings import SETTINGS
from max_zimage.request.fields import ROWS
from max_zimage.serving.http import routes_hidden_states
from max_zimage.serving.http.answers import finished
from max_zimage.serving.http.api_names import IMAGES, ApiNames, refused
from max_zimage.serving.http.requests import ServedModel, check_model, check_texts
from max_zimage.serving.http.routes_images import described, json_body, parsed
from max_zimage.serving.http.state import state_of
from max_zimage.serving.worker.prompt_features import read_features
from max_zimage.text.tokenizer import TokenizerError

router = APIRouter(prefix="/v1")
router.include_router(routes_hidden_states.router)


class FeaturesRequest(BaseModel):
    """What is encoded."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str, Field(description="What to show.")]
    negative_prompt: Annotated[str | None, Field(description='Encoded too; "" for guidance without one.')] = None
    model: Annotated[str | None, Field(description="The served model's name, or nothing.")] = None
    user: Annotated[str | None, Field(max_length=512, description="Goes into the server's log.")] = None


def _with_settings() -> type[FeaturesRequest]:
    """The body with the fields that say how texts are read."""
    found: dict[str, Any] = {}
    for name in (*SETTINGS, "template"):
        row = ROWS[name]
        if row.images is not None:
            kind: Any = (row.kind.schema or row.kind.plain) | None
            found[row.images.name] = (Annotated[kind, Field(description=row.images.description)], None)
    return create_model(
        "FeaturesRequest", __base__=FeaturesRequest, __module__=__name__, __doc__=FeaturesRequest.__doc__, **found
    )


FEATURES: type[FeaturesRequest] = _with_settings()
"""The body as the route takes it."""


@router.post("/prompt-features", openapi_extra=described(FEATURES))
async def prompt_features(request: Request) -> Response:
    """Encode a prompt: its features as base64 of a safetensors file, which `features` of the image routes takes."""
    state = state_of(request)
    state.check_room()
    body = parsed(FEATURES, await json_body(request))
    given = {name: getattr(body, name) for name in (*SETTINGS, "template")}
    check_model(state.served, body.model)
    context = await asyncio.to_thread(encoding, state.served, IMAGES, body.prompt, body.negative_prompt, given)
    job = await state.submit(context, request)
    state.note_texts(job, body.user)
    features = await asyncio.to_thread(read_features, await finished(state.dispatcher, job, request))
    tokens = features.tokens + (0 if features.negative is None else len(features.negative))
    answer = {
        "object": "prompt_features",
        "created": int(time.time()),
        "model": state.served.name,
        "b64_json": base64.b64encode(features.to_bytes()).decode(),
        "shape": list(features.positive.shape),
        "digest": features.digest,
        "usage": {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens},
    }
    return JSONResponse(answer)


def encoding(
    served: ServedModel, names: ApiNames, prompt: str, negative_prompt: str | None, given: Mapping[str, Any]
) -> ZImageContext:
    """Check texts that are to be encoded, and prepare them.

    Args:
        served: The model.
        names: Of the API they came by.
        prompt: The prompt.
        negative_prompt: Encoded too; None for none.
        given: How they are read, by name of `SETTINGS`, and `template`; None for what is not said.

    Raises:
        ApiError: 400, with the field that is to blame.
    """
    tokenizer = served.tokenizer
    settings = {name: value for name, value in given.items() if value is not None}
    try:
        asked = request_of_texts(tokenizer, prompt, negative_prompt, **settings)
        check_texts(served.limits, asked, names)
        return tokenizer.make_context(asked, **served.encoding_fields())
    except (RequestError, TokenizerError) as error:
        raise refused(error, names) from error
