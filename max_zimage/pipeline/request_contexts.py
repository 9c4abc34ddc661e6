"""A validated request as the context that a worker draws from: tokenized, with its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from max.pipelines.context import TokenBuffer
from max.pipelines.modeling.types import RequestID

from max_zimage.errors import RequestError
from max_zimage.pipeline.batch import IdArray
from max_zimage.pipeline.captions import tokens_of_request
from max_zimage.pipeline.context import ZImageContext
from max_zimage.request.legs import legs_of
from max_zimage.request.limits import Limits
from max_zimage.request.request import GenerationRequest
from max_zimage.request.wire import sharing_key, to_text
from max_zimage.sampling.schedule import ScheduleSpec
from max_zimage.sampling.step_cache import format_step_cache
from max_zimage.text.tokenizer import PromptTokenizer

_AS_ASKED = (
    "height",
    "width",
    "num_inference_steps",
    "strength",
    "cfg_normalization",
    "cfg_truncation",
    "num_images_per_prompt",
)
"""Fields that MAX's context has under the same names."""


def context_of_request(
    asked: GenerationRequest,
    tokenizer: PromptTokenizer,
    limits: Limits,
    schedule_spec: ScheduleSpec,
    **fields: Any,
) -> ZImageContext:
    """Tokenize a request of one prompt, and make its schedule.

    Args:
        asked: The request.
        tokenizer: Of the checkpoint.
        limits: What the checkpoint can do at most.
        schedule_spec: Its schedule.
        **fields: As of `context_of_tokens`.

    Returns:
        As of `context_of_tokens`.

    Raises:
        RequestError: If a text has too many tokens, or a step would have no length.
        TokenizerError: If the chat template refuses it.
    """
    return context_of_tokens(asked, tokens_of_request(asked, tokenizer, limits), schedule_spec, **fields)


def context_of_tokens(
    asked: GenerationRequest,
    texts: Sequence[IdArray],
    schedule_spec: ScheduleSpec,
    *,
    request_id: RequestID | None = None,
    model_name: str = "",
    output_format: str = "png",
    **more: Any,
) -> ZImageContext:
    """Make the schedule of a request whose texts are token ids already.

    Args:
        asked: The request.
        texts: int64 [tokens] each: its prompt, where it has no features, and its negative prompt.
        schedule_spec: The checkpoint's schedule.
        request_id: The request's id; a new one if not given.
        model_name: What the client calls the model.
        output_format: "png", "jpeg" or "webp".
        **more: Other fields of `ZImageContext`.

    Returns:
        Token ids unpadded, float32 sigmas [N + 1] and timesteps [N], and the seed of its noise.

    Raises:
        RequestError: If a step would have no length.
    """
    if asked.enhance:  # of `max serve`, or of a caller that forgot to
        raise RequestError.of("enhance", "{field}: prompts are not enhanced here; leave it out")
    given = asked.features and asked.features[0]
    prompt, *negative = [np.zeros(given.tokens, np.int64), *texts] if given else texts  # MAX's context wants some
    plan, settled = asked.schedule(schedule_spec), asked.settled()
    legs = legs_of(asked, schedule_spec)
    return ZImageContext(
        request_id=request_id or RequestID(),
        model_name=model_name,
        **_texts(prompt, negative[0] if negative else None),
        explicit_negative_prompt=any(asked.negative_prompts),
        timesteps=plan.timesteps,
        sigmas=plan.sigmas,
        latents=np.empty(0, np.float32),  # a seed says it all: the worker draws them
        **{name: getattr(asked, name) for name in _AS_ASKED},
        guidance_scale=asked.max_guidance,
        input_image=settled.image,
        input_mask=settled.mask_image,
        output_format=output_format,
        seed=asked.seed or 0,
        step_cache=format_step_cache(asked.step_cache),
        features=given.positive if given else None,
        negative_features=given.negative if given else None,
        request=to_text(settled),
        sharing=sharing_key(asked, plan),
        all_steps=sum(leg.plan.num_steps for leg in legs),
        **more,
    )


def _texts(prompt: IdArray, negative: IdArray | None) -> dict[str, Any]:
    return {
        "tokens": TokenBuffer(prompt),
        "mask": np.ones(len(prompt), np.bool_),
        "negative_tokens": None if negative is None else TokenBuffer(negative),
        "negative_mask": None if negative is None else np.ones(len(negative), np.bool_),
    }
