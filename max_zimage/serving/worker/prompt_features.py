"""Features of prompts as an answer: what the worker makes of a request that is only encoded."""

from __future__ import annotations

import base64

import numpy as np
from max.pipelines.context import GenerationStatus
from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.request.open_responses import OutputTextContent

from max_zimage.pipeline.context import ZImageContext, request_of
from max_zimage.pipeline.encoding import features_of_ids
from max_zimage.pipeline.not_finite import NotFiniteError, usual_suspects
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.request.prompt_features import PromptFeatures
from max_zimage.serving.worker.messages import text_content


def encoded_output(pipeline: ZImagePipeline, context: ZImageContext) -> GenerationOutput:
    """Encode the texts of a request.

    Args:
        pipeline: Whose text encoder does it.
        context: The request, with token ids of its texts.

    Raises:
        NotFiniteError: If there is NaN or infinity among its features.
    """
    given = (context.tokens, context.negative_tokens)
    texts = [np.asarray(each.array, np.int64) for each in given if each is not None]
    template, tokenizer = context.encodes
    most = pipeline.sources.limits.max_tokens
    (features,) = features_of_ids(pipeline.text_encoder, request_of(context), texts, most, (template, tokenizer))
    if not all(np.isfinite(each).all() for each in (features.positive, features.negative) if each is not None):
        what = "hidden states of the text encoder came out as NaN or infinity"
        raise NotFiniteError(what, [], usual_suspects(pipeline.text_encoder.dtype_name))
    content = text_content(base64.b64encode(features.to_bytes()).decode())
    return GenerationOutput(
        request_id=context.request_id, final_status=GenerationStatus.END_OF_SEQUENCE, output=[content]
    )


def read_features(output: GenerationOutput) -> PromptFeatures:
    """Unpack what `encoded_output` packed."""
    (content,) = output.output
    if not isinstance(content, OutputTextContent):
        raise ValueError(f"the worker's answer is {type(content).__name__}, not text")
    return PromptFeatures.from_bytes(base64.b64decode(content.text))
