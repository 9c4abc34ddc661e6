"""llm-dit's `POST /v1/hidden_states`: a text that its client has put into the chat template, to states of the encoder.

    {input, model, layer, max_length, encoding_format} -> {hidden_states, shape, dtype, layer, encoding_format}

Reference: reference/weights.md section 5.1; llm-dit backends/api.py, whose client reads `encoding_format`, too.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from max.pipelines.context.outputs import GenerationOutput
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from max_zimage.errors import RequestError, Wording
from max_zimage.pipeline.context import ZImageContext
from max_zimage.pipeline.encoding import request_of_texts
from max_zimage.request.checks import check_tokens
from max_zimage.request.modes import REFUSE
from max_zimage.serving.http.answers import finished
from max_zimage.serving.http.api_names import ApiNames, refused
from max_zimage.serving.http.requests import ServedModel, check_model, check_texts
from max_zimage.serving.http.routes_images import described, json_body, parsed
from max_zimage.serving.http.state import state_of
from max_zimage.serving.worker.prompt_features import read_features
from max_zimage.text.tokenizer import TokenizerError

router = APIRouter()
"""Stands beside the routes of features, see `routes_features`."""


class HiddenStatesRequest(BaseModel):
    """What is encoded."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    input: Annotated[
        str, Field(min_length=1, description="The text as it is tokenized: no chat template is put around it.")
    ]
    model: Annotated[str | None, Field(description="The served model's name, or nothing.")] = None
    layer: Annotated[int, Field(description="Which hidden state, counted as transformers counts them.")] = -2
    max_length: Annotated[int, Field(description="Tokens at most; more are refused, none is cut off.")] = 512
    encoding_format: Annotated[
        Literal["base64", "float"],
        Field(description="base64 of float32 in little-endian order, or a list of rows of numbers."),
    ] = "base64"


NAMES = ApiNames(
    wording=Wording({"prompt": "input", "hidden_layer": "layer", "max_sequence_length": "max_length"}),
    blamed={},
    known=frozenset(HiddenStatesRequest.model_fields),
)
"""How this route speaks."""


@router.post("/hidden_states", openapi_extra=described(HiddenStatesRequest))
async def hidden_states(request: Request) -> Response:
    """Encode a text that stands in its chat template already; `/v1/prompt-features` encodes a prompt."""
    state = state_of(request)
    state.check_room()
    body = parsed(HiddenStatesRequest, await json_body(request))
    check_model(state.served, body.model)
    context = await asyncio.to_thread(_context, state.served, body)
    job = await state.submit(context, request)
    state.note_texts(job, None)
    output = await finished(state.dispatcher, job, request)
    written = await asyncio.to_thread(_written, output, body, state.served.name)  # millions of numbers take seconds
    return Response(written, media_type="application/json")


def _context(served: ServedModel, body: HiddenStatesRequest) -> ZImageContext:
    """Check the text, and tokenize it as it is.

    Raises:
        ApiError: 400, with the field that is to blame.
    """
    tokenizer = served.tokenizer
    # Nothing that the server's configuration puts around prompts: the client has done that.
    bare = {"system_prompt": "", "thinking_content": "", "assistant_content": ""}
    settings: dict[str, Any] = {"hidden_layer": body.layer, "max_sequence_length": body.max_length}
    try:
        asked = request_of_texts(tokenizer, body.input, None, long_prompt_mode=REFUSE, **bare, **settings)
        check_texts(served.limits, asked, NAMES)
        ids = tokenizer.prompts.encode_formatted(body.input)
        check_tokens(len(ids), REFUSE, body.max_length, tokenizer.limits, "the input", "prompt")
        return tokenizer.context_of(asked, [ids], **served.encoding_fields())
    except (RequestError, TokenizerError) as error:
        raise refused(error, NAMES) from error


def _written(output: GenerationOutput, body: HiddenStatesRequest, model: str) -> bytes:
    """The answer's body, of what the worker made of a request."""
    states = np.ascontiguousarray(read_features(output).positive, "<f4")  # [tokens, width]
    is_packed = body.encoding_format == "base64"
    answer = {
        "hidden_states": base64.b64encode(states.tobytes()).decode() if is_packed else states.tolist(),
        "shape": list(states.shape),
        "dtype": "float32",
        "layer": body.layer,
        "encoding_format": body.encoding_format,
        "model": model,
    }
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()
