"""What `max-zimage profile` is about without `--component`: the pictures of a request."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

from max.engine import InferenceSession

from max_zimage import embedded
from max_zimage.cli.common import DEFAULT_PROMPT
from max_zimage.cli.field_flags import given_fields
from max_zimage.cli.info import conditions
from max_zimage.cli.options import model_path
from max_zimage.cli.placement_flags import placement_options
from max_zimage.pipeline.captions import tokens_of_request
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.placed_requests import placed_for
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.profiling.measure import Subject
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import format_step_cache


def asked_picture(arguments: argparse.Namespace) -> tuple[CheckedModel, GenerationRequest]:
    """Check a model and a request, but not whether there is memory for them.

    Raises:
        ValueError: If anything is wrong with them.
    """
    prepared = ZImagePipeline.prepare(
        model_path(arguments.model),
        device=arguments.device,
        dtype=arguments.dtype or "auto",
        weight_path=arguments.weight_path,
        quantize=arguments.quantize,
        attention_backend=arguments.attention_backend,
        embedding_cache_bytes=arguments.embedding_cache,
        config=arguments.configuration,
        **placement_options(arguments),
    )
    sources = prepared.sources
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        request = GenerationRequest.create(
            limits=sources.limits,
            defaults=sources.defaults,
            **{"prompt": DEFAULT_PROMPT, "enhance": False} | given_fields(arguments),  # as it is
            num_images_per_prompt=arguments.batch,
            seed=0,
            output_type="np",
        )
    tokens_of_request(request, prepared.tokenizer, sources.limits)
    return prepared, request


def checked_picture(arguments: argparse.Namespace) -> tuple[CheckedModel, GenerationRequest, dict[str, Any]]:
    """Check a model, a request and their memory.

    Returns:
        Both, and what a measurement of them is made of and on.

    Raises:
        ValueError: If anything is wrong with them.
    """
    prepared, request = asked_picture(arguments)
    sources, device = prepared.sources, prepared.devices[0]
    dtype = sources.dtypes["transformer"]
    prepared = placed_for(prepared, request)
    said = {
        **conditions(arguments.model or embedded.NAME, None, device, dtype),
        "sizes": f"{arguments.batch} x {request.width}x{request.height} pixels",
        "steps_asked": request.num_inference_steps,
        "guidance": request.guidance_scale,
        "step_cache": format_step_cache(request.step_cache),
        "attention": sources.attention_backend or "auto",
    }
    return prepared, request, said


def picture(arguments: argparse.Namespace) -> Subject:
    """Check a model, a request and their memory, and know how to load them.

    Raises:
        ValueError: If anything is wrong with them.
    """
    prepared, request, said = checked_picture(arguments)

    def load() -> tuple[Callable[[], object], InferenceSession]:
        pipeline = ZImagePipeline.from_prepared(prepared)
        pipeline.compile_step_cache(request.step_cache)
        return lambda: pipeline.generate(request), pipeline.session

    return Subject(
        conditions=said,
        device=prepared.devices[0],
        dtype=prepared.sources.dtypes["transformer"],
        specs=prepared.sources.specs,
        load=load,
    )
