"""What `max-zimage profile` can be about: the pictures of a request, or one component on random inputs."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from typing import Any

from max.driver import Device, load_devices
from max.engine import InferenceSession

from max_zimage import embedded
from max_zimage.cli.common import DEFAULT_PROMPT
from max_zimage.cli.compile import PUBLISHED, specs_of
from max_zimage.cli.info import versions
from max_zimage.cli.options import model_path
from max_zimage.compile.compiler import wait_for
from max_zimage.device.devices import device_spec
from max_zimage.device.dtypes import model_dtype
from max_zimage.device.libraries import check_libraries
from max_zimage.pipeline.estimate import check_weights_and_request
from max_zimage.pipeline.prepare import tokens_of_request
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.profiling.component import Component, Prepared, cut
from max_zimage.profiling.measure import Subject
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import written

_SIDE, _CAPTION_TOKENS, _TOKENS = 1024, 128, 4128
"""Of a component where nothing else is asked for: a 1024x1024 picture, alone and with a caption of 32 tokens."""


def picture(arguments: argparse.Namespace) -> Subject:
    """Check a model, a request and their memory.

    Raises:
        ValueError: If anything is wrong with them.
    """
    prepared = ZImagePipeline.prepare(
        model_path(arguments.model),
        device=arguments.device,
        dtype=arguments.dtype or "auto",
        weight_path=arguments.weight_path,
    )
    sources, device = prepared.sources, prepared.devices[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        request = GenerationRequest.create(
            limits=sources.limits,
            defaults=sources.defaults,
            prompt=DEFAULT_PROMPT if arguments.prompt is None else arguments.prompt,
            height=arguments.height,
            width=arguments.width,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
            step_cache=arguments.step_cache,
            num_images_per_prompt=arguments.batch,
            seed=0,
            output_type="np",
        )
    tokens_of_request(request, prepared.tokenizer, sources.limits)
    dtype = sources.dtypes["transformer"]
    check_weights_and_request(sources, device, request)

    def load() -> tuple[Callable[[], object], InferenceSession]:
        pipeline = ZImagePipeline.from_prepared(prepared)
        pipeline.compile_step_cache(request.step_cache)
        return lambda: pipeline.generate(request), pipeline.session

    return Subject(
        conditions={
            **_conditions(arguments.model or embedded.NAME, None, device, dtype),
            "sizes": f"{arguments.batch} x {request.width}x{request.height} pixels",
            "steps_asked": request.num_inference_steps,
            "guidance": request.guidance_scale,
            "step_cache": written(request.step_cache),
        },
        device=device,
        dtype=dtype,
        specs=sources.specs,
        load=load,
    )


def component(arguments: argparse.Namespace) -> Subject:
    """Check a component, its sizes and its memory.

    Raises:
        ValueError: If anything is wrong with them.
    """
    (device,) = load_devices([device_spec(arguments.device)])
    check_libraries(device)
    dtype = model_dtype(arguments.dtype or "auto", device)
    name = arguments.component
    tokens = {"text_encoder": _CAPTION_TOKENS, "transformer": _TOKENS, "vae": 0}[name]
    wanted = Component(
        name=name,
        specs=cut(specs_of(arguments.model), name, arguments.layers),
        dtype=dtype,
        batch=arguments.batch,
        tokens=tokens if arguments.tokens is None else arguments.tokens,
        height=_SIDE if arguments.height is None else arguments.height,
        width=_SIDE if arguments.width is None else arguments.width,
    )
    prepared = Prepared.of(wanted, device)

    def load() -> tuple[Callable[[], object], InferenceSession]:
        session = InferenceSession(devices=[device])
        graph, inputs = prepared.load(session), prepared.inputs()
        wait_for([graph])
        return lambda: graph(*inputs), session

    return Subject(
        conditions={
            **_conditions(arguments.model or PUBLISHED, name, device, dtype),
            "sizes": wanted.sizes,
            "layers": arguments.layers,
            "weight_bytes": prepared.weight_bytes,
        },
        device=device,
        dtype=dtype,
        specs=wanted.specs,
        load=load,
    )


def _conditions(model: str, component: str | None, device: Device, dtype: str) -> dict[str, Any]:
    return {
        "model": model,
        "component": component,
        "device": device.label + ("" if device.is_host else f":{device.id}"),
        "dtype": dtype,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }
