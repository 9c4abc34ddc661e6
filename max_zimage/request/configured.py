"""What is configured for requests that say nothing, and what of it a request leaves: nothing that would do nothing.

What a request says comes first. Where it turns something off, or chooses another, what is configured of that goes; and
what is configured waits where it is configured as off: `[slg] scale` while `[slg] enabled` is false.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from max_zimage.request.seed_uses import draws_more
from max_zimage.request.shift_uses import excluded

OF_CHECKPOINT = ("height", "width", "num_inference_steps", "sampler", "sigma_shape", "guidance_scale")
"""Fields that a checkpoint has defaults of; a list of guidance scales is none of those."""

_SLG = ("slg_layers", "slg_start", "slg_stop")
_APG = ("apg_eta", "apg_momentum", "apg_norm_threshold")
_GUIDANCE = ("guidance_variant", "guidance_interval", "zero_init", *_APG)
_DYPE = ("dype_scale", "dype_exponent", "dype_start_sigma", "dype_base_resolution")
_NAG = ("nag_scale", "nag_tau", "nag_alpha", "nag_sigma_end")
_VARIATION = ("variation_seed", "variation_strength")
_ENCODING = ("hidden_layer", "long_prompt_mode", "max_sequence_length")
_TEXTS = ("system_prompt", "thinking_content", "assistant_content", "template")


def with_configured(given: Mapping[str, Any], configured: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a request, and under them what is configured.

    Args:
        given: Arguments; None is not given.
        configured: Field -> value.

    >>> with_configured({"prompt": "x", "dype": "off"}, {"dype": "yarn", "dype_scale": 3.0, "shift": 2.0})
    {'shift': 2.0, 'prompt': 'x', 'dype': 'off'}
    """
    said = {name: value for name, value in given.items() if value is not None}
    gone = _switched_off(said, configured) | _replaced(said, configured) | _without_subject(said, configured)
    left = {name: value for name, value in configured.items() if name not in gone and name not in said}
    return left | dict(given) | {name: left[name] for name in left if name in given}


def _switched_off(said: Mapping[str, Any], configured: Mapping[str, Any]) -> set[str]:
    """What goes with something that is off, by the request or by what is configured."""
    asked = {**configured, **said}
    gone: set[str] = set()
    if "slg" in said or "slg_scale" in said:
        gone |= {"slg"} | ({"slg_scale"} if said.get("slg") is False else set())
        is_off = said.get("slg") is False or said.get("slg_scale") == 0
    else:
        is_off = configured.get("slg") is False
        gone |= {"slg_scale"} if is_off else set()
    gone |= set(_SLG) if is_off else set()
    dype, tiling = asked.get("dype"), asked.get("vae_tiling")
    gone |= set(_DYPE) if dype == "off" else {"dype_start_sigma"} if dype not in (None, "vision_yarn") else set()
    if tiling in ("off", "exact"):
        gone |= {"vae_tile_overlap"} | ({"vae_tile_size"} if tiling == "off" else set())
    gone |= set(_NAG) if asked.get("nag_scale") == 0 else set()
    gone |= {"seed_variance_share"} if asked.get("seed_variance") == 0 else set()
    gone |= set() if asked.get("enhance") else {"enhance_seed"}
    gone |= set(_VARIATION) if asked.get("variation_strength") == 0 else set()
    if said.get("guidance_scale") == 0:
        gone |= {*_GUIDANCE, *(() if asked.get("slg_scale") or asked.get("slg") else ("guidance_rescale",))}
    return gone


def _replaced(said: Mapping[str, Any], configured: Mapping[str, Any]) -> set[str]:
    """What goes where the request chooses another way."""
    gone = excluded(said, configured)
    if "guidance_variant" in said:
        others = {"apg": set(_APG), "cfg_zero_star": {"zero_init"}}
        gone |= set().union(*(names for variant, names in others.items() if variant != said["guidance_variant"]))
    if said.get("guidance_scale") and not said.get("nag_scale"):  # which takes its place
        gone |= set(_NAG)
    if said.get("cfg_normalization"):
        gone |= {"guidance_variant", "guidance_rescale", "zero_init", *_APG}
    if "guidance_variant" in said or "guidance_rescale" in said:
        gone |= {"cfg_normalization"}
    if said.keys() & {"num_inference_steps", "sigma_shape", "passes"}:  # each says which levels there are
        gone |= {"sigmas"}
    if "sigmas" in said:
        gone |= {"passes", "num_inference_steps", "sigma_shape"}
        gone |= {"guidance_scale"} if isinstance(configured.get("guidance_scale"), list) else set()
    if "num_inference_steps" in said:
        gone |= {"passes"} | ({"guidance_scale"} if isinstance(configured.get("guidance_scale"), list) else set())
    if "passes" in said:
        gone |= {"progressive"}
    if said.get("progressive"):
        gone |= {"passes"}
    if "template" in said:
        gone |= set(_TEXTS)
    return gone


def _without_subject(said: Mapping[str, Any], configured: Mapping[str, Any]) -> set[str]:
    """What says how something is done that this request has not."""
    gone: set[str] = set()
    if "image" not in said:
        gone |= {"strength"}
    if "passes" not in said and ("passes" not in configured or {"num_inference_steps", "sigmas"} & set(said)):
        gone |= {"upscale"}
    if "features" in said or "prompt_embeds" in said:
        gone |= {*_ENCODING, *_TEXTS, "enhance", "enhance_seed"}
    if "negative_prompt_embeds" in said or any(each.negative is not None for each in _features(said)):
        gone |= {"negative_prompt"}
    if "latents" in said:
        asked = {**configured, **said}
        more = draws_more(asked.get("sampler", "euler"), asked.get("seed_variance"))
        gone |= {"noise", *_VARIATION} | (set() if more else {"seed"})
    return gone


def _features(said: Mapping[str, Any]) -> list[Any]:
    given = said.get("features") or ()
    return [each for each in (given if isinstance(given, (list, tuple)) else [given]) if hasattr(each, "negative")]
