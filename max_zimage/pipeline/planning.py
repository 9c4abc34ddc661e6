"""What a request asks of the model, evaluation by evaluation: its sampler's table, and the branches of its guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from max_zimage.request.dype_fields import DYPE_OFF
from max_zimage.request.guidance_checks import skipped_layers
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling import samplers
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Branch, Guidance, Variant, VariantName, cfg, combined, nag, skip_layer
from max_zimage.sampling.positions.dype import Dype, Method
from max_zimage.sampling.schedule import Schedule


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
