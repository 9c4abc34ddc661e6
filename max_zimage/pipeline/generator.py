"""The request of a call, and a generator of torch's that draws its noise as diffusers has it drawn."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from max_zimage.errors import RequestError
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.request.request import GenerationRequest
from max_zimage.request.seed_uses import draws_more
from max_zimage.sampling import samplers
from max_zimage.sampling.schedule import ScheduleSpec


def request_of_call(sources: CheckpointManifest, given: Mapping[str, Any]) -> GenerationRequest:
    """Validate the arguments of a call.

    Args:
        sources: The checkpoint.
        given: The fields of a request, `enhancer`, which is left aside, and `generator`, a `torch.Generator` on the CPU
            or one for each picture.

    Raises:
        RequestError: If an argument is out of range, or the generator is none.
    """
    fields = {name: value for name, value in given.items() if name not in ("generator", "enhancer")}
    request = GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **fields)
    generator = given.get("generator")
    if generator is None:
        return request
    return _drawn_by(generator, request, sources.limits.latent_channels, sources.specs.schedule, fields)


def _drawn_by(
    generator: object, request: GenerationRequest, channels: int, spec: ScheduleSpec, given: Mapping[str, Any]
) -> GenerationRequest:
    """The request with latents that the generator draws: of all pictures at once, or each its own.

    Reference: diffusers utils/torch_utils.py, randn_tensor.
    """
    torch: Any = sys.modules.get("torch")  # whoever has a generator has it
    generators: list[Any] = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if torch is None or not all(isinstance(each, torch.Generator) for each in generators):
        message = (
            "generator must be a torch.Generator or a list of them, got {given}; a number is given as {name[seed]}"
        )
        raise RequestError.of(None, message, given=type(generator).__name__)
    if any(each.device.type != "cpu" for each in generators):
        raise RequestError.of(None, "generator must be on the CPU, where its noise does not depend on the machine")
    if isinstance(generator, (list, tuple)) and len(generators) != request.num_images:
        message = "generator must be one, or one for each of {pictures} pictures, got {given}"
        raise RequestError.of(None, message, pictures=request.num_images, given=len(generators))
    excluded = [name for name in ("latents", "image", "variation_seed") if given.get(name) is not None]
    needs_seed = draws_more(request.sampler, request.seed_variance)
    if needs_seed and given.get("seed") is None:
        message = "generator draws the starting noise alone, and {what} draws more from {name[seed]}; give that too"
        what = request.sampler if samplers.is_stochastic(request.sampler) else "seed_variance"
        raise RequestError.of(None, message, what=what)
    excluded += [name for name in ("passes", "progressive") if getattr(request, name)]
    excluded += ["seed"] if given.get("seed") is not None and not needs_seed else []
    if excluded:
        message = "generator and {field} exclude each other, got both; leave one out"
        if {"image", "passes", "progressive"} & {*excluded}:
            message += ', or give the generator\'s seed as {name[seed]} with {name[noise]}="torch"'
        raise RequestError.of(excluded[0], message)
    shape = (request.num_images // len(generators), channels, request.height // 8, request.width // 8)
    drawn = [torch.randn(shape, generator=each, dtype=torch.float32).numpy() for each in generators]
    noise = np.concatenate(drawn) * np.float32(request.schedule(spec).noise_scale)
    return replace(request, latents=noise, seed=request.seed if needs_seed else None)
