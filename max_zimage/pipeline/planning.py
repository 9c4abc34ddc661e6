"""What a request asks of the model, evaluation by evaluation: its sampler's table, and the branches of its guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from max_zimage.pipeline.batch import Captions, Later
from max_zimage.request.dype_fields import DYPE_OFF
from max_zimage.request.guidance_checks import skipped_layers
from max_zimage.request.legs import Leg
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling import samplers
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Branch, Guidance, Variant, VariantName, cfg, combined, nag, skip_layer
from max_zimage.sampling.noise import image_seed
from max_zimage.sampling.positions.dype import Dype, Method
from max_zimage.sampling.schedule import Schedule
from max_zimage.sampling.starting_noise import stream_of


def planned(
    asked: GenerationRequest,
    plan: Schedule,
    num_layers: int,
    others: Callable[[Evaluations], Sequence[Branch]] | None = None,
) -> tuple[Evaluations, Guidance]:
    """What the sampler asks of the model, and the branches of each evaluation."""
    evaluated = samplers.plan(asked.sampler, plan)
    branches = [*_skipping(asked, evaluated, num_layers), *(others(evaluated) if others else ())]
    return evaluated, combined(_classifier_free(asked, evaluated), branches)


def extrapolation(asked: GenerationRequest, rows: int, columns: int) -> Dype | None:
    """How the request has positions extrapolated in a picture of so many tokens; None where that changes nothing."""
    if asked.dype == DYPE_OFF:
        return None
    found = Dype(
        method=cast(Method, asked.dype),
        scale=asked.dype_scale,
        exponent=asked.dype_exponent,
        start_sigma=asked.dype_start_sigma,
        base_resolution=asked.dype_base_resolution,
    )
    return found if found.changes(rows, columns) else None


def planned_later(
    legs: Sequence[Leg],
    requests: Sequence[GenerationRequest],
    captions: Captions,
    num_layers: int,
    others: Callable[[Evaluations], Sequence[Branch]] | None = None,
) -> tuple[Later, ...]:
    """The legs of a run behind the first one.

    Args:
        legs: All of them.
        requests: That share the batch; their legs are the same but for the noise.
        captions: Of all, as for the first leg.
        num_layers: Main layers of the transformer.
        others: Branches on top of classifier-free guidance.
    """
    later = []
    for leg in legs[1:]:
        evaluated, guided = planned(leg.asked, leg.plan, num_layers, others)
        sources = [leg.noise_source(asked, picture) for asked in requests for picture in range(asked.num_images)]
        own = replace(evaluated, streams=evaluated.streams + stream_of(0, leg.number))
        later.append(Later(leg=leg, evaluations=own, guidance=guided, captions=captions, sources=tuple(sources)))
    return tuple(later)


def seeds_of(evaluated: Evaluations, seed: int | None, pictures: int) -> tuple[int, ...]:
    """The seeds of a request's pictures, where the sampler draws noise."""
    if not evaluated.noisy.any():
        return ()
    if seed is None:
        raise ValueError("a sampler that draws noise needs a seed, and the request has none")
    return tuple(image_seed(seed, index) for index in range(pictures))


def _classifier_free(asked: GenerationRequest, evaluated: Evaluations) -> Guidance:
    """What the request's positive and negative branches make."""
    variant = Variant(
        name=cast(VariantName, asked.guidance_variant),
        zero_init=asked.zero_init,
        eta=asked.apg_eta,
        momentum=asked.apg_momentum,
        norm_threshold=asked.apg_norm_threshold,
        rescale=asked.guidance_rescale,
    )
    found = cfg.guidance(
        evaluated,
        asked.guidance_scale,
        asked.cfg_truncation,
        asked.cfg_normalization,
        asked.guidance_interval,
        variant,
    )
    if not asked.nag_scale:
        return found
    strength = {"scale": asked.nag_scale, "tau": asked.nag_tau, "alpha": asked.nag_alpha}
    return replace(found, nag=nag.nag(evaluated, **strength, sigma_end=asked.nag_sigma_end))


def _skipping(asked: GenerationRequest, evaluated: Evaluations, num_layers: int) -> list[Branch]:
    """The branch of skip-layer guidance, if the request has it."""
    if not asked.slg_scale:
        return []
    layers = skipped_layers(asked.slg_layers, num_layers)
    found = skip_layer.branch(
        evaluated, scale=asked.slg_scale, layers=layers, start=asked.slg_start, stop=asked.slg_stop
    )
    return [found] if found.scales.any() else []  # its steps may lie in another part of the run
