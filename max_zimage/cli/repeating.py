"""What is left of a picture's values when flags take the place of some of them: nothing that only went with those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from max_zimage.request.feature_settings import SETTINGS
from max_zimage.request.seed_uses import draws_more
from max_zimage.request.shift_uses import excluded
from max_zimage.sampling.names import DEFAULT_SAMPLER

_SLG = ("slg_layers", "slg_start", "slg_stop")
_VARIANT = ("zero_init", "apg_eta", "apg_momentum", "apg_norm_threshold")
_DYPE = ("dype_scale", "dype_exponent", "dype_start_sigma", "dype_base_resolution")
_NAG = ("nag_tau", "nag_alpha", "nag_sigma_end")
_VARIATION = ("variation_seed", "variation_strength")


def without_replaced(kept: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a picture that still hold.

    Args:
        kept: Those of the picture; one of another tool says little.
        given: Those that flags say.
    """
    left = dict(kept)
    for name in _gone(kept, given):
        left.pop(name, None)
    if given.get("enhance") and kept.get("enhanced_by"):  # anew, from what it was written from
        left["prompt"] = kept["original_prompt"]
    return left


def _gone(kept: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
    gone = excluded(given, kept)
    if "num_inference_steps" in given or "sigma_shape" in given:
        gone |= {"sigmas"}  # levels that were given one by one
    if "sigmas" in given:
        gone |= {"num_inference_steps", "sigma_shape"}
    if {"num_inference_steps", "sigmas"} & set(given) and isinstance(kept.get("guidance_scale"), tuple):
        gone |= {"guidance_scale"}
    if "features" in given:  # which say all of their texts
        gone |= {"prompt", *SETTINGS} | (set() if given["features"].negative is None else {"negative_prompt"})
    if given.get("enhance") or {"prompt", "features"} & set(given) or not kept.get("enhanced_by"):
        gone |= {"original_prompt", "enhanced_by"}
    if "template" in given:
        gone |= {"system_prompt", "thinking_content", "assistant_content"}
    if "slg" in given:
        gone |= {"slg_scale"}
    if given.get("slg") is False or given.get("slg_scale") == 0:
        gone |= {"slg_scale", *_SLG}
    if given.get("guidance_variant", kept.get("guidance_variant")) != kept.get("guidance_variant"):
        gone |= set(_VARIANT)
    if given.get("guidance_scale") == 0:
        gone |= {"guidance_variant", "guidance_interval", *_VARIANT}
        gone |= set() if kept.get("slg_scale") else {"guidance_rescale"}
    if given.get("dype") == "off":
        gone |= set(_DYPE)
    if given.get("dype", "vision_yarn") != "vision_yarn":
        gone |= {"dype_start_sigma"}
    if given.get("guidance_scale") and not given.get("nag_scale"):  # which takes its place
        gone |= {"nag_scale", *_NAG}
    if given.get("nag_scale") == 0:
        gone |= set(_NAG)
    if given.get("variation_strength") == 0:
        gone |= set(_VARIATION)
    if {"num_inference_steps", "sigmas"} & set(given):  # of a single run
        gone |= {"passes", "upscale"}
    if "passes" in given:
        gone |= {"num_inference_steps", "sigmas", "progressive", "upscale"}
    if given.get("progressive"):
        gone |= {"passes", "upscale"}
    if given.get("seed_variance") == 0:
        gone |= {"seed_variance_share"}
    if "latents" in given:  # the picture's seed drew latents of its own, and may draw more on the way
        asked = {**kept, **given}
        more = draws_more(asked.get("sampler", DEFAULT_SAMPLER), asked.get("seed_variance"))
        gone |= {"noise", *_VARIATION} | (set() if more else {"seed"})
    return gone
