"""Arguments to the attributes of a request: defaults, and checks of each field by itself and with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from max_zimage.errors import RequestError
from max_zimage.images.masks import mask_of
from max_zimage.request import checks, guidance_checks
from max_zimage.request import start_image as start_images
from max_zimage.request.checks import Problems
from max_zimage.request.fields import ROWS
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.passes import guidance_scales
from max_zimage.request.passes_values import with_steps
from max_zimage.request.row import Of, Row
from max_zimage.request.seeds import seed_of
from max_zimage.request.text_values import resolved
from max_zimage.sampling.names import DEFAULT_SAMPLER, DEFAULT_SHAPE
from max_zimage.sampling.ranges import DEFAULT_STRENGTH


def values_of(
    problems: Problems, given: Mapping[str, Any], limits: Limits, defaults: RequestDefaults
) -> dict[str, Any]:
    """The attributes of a request, each checked by itself and with those that it depends on."""
    check, given = problems.check, resolved(problems, given, limits, defaults)

    def alone(name: str) -> Any:
        return _checked_alone(problems, ROWS[name], given[name], limits, defaults)

    # First what others depend on.
    prompts = check((), _prompts, given["prompt"], given["prompt_embeds"], limits)
    sampler, margins = alone("sampler") or DEFAULT_SAMPLER, alone("outpaint")
    mask = problems.optional(mask_of, "mask_image", given["mask_image"], (limits.max_height, limits.max_width))
    is_masked = mask is not None or margins is not None
    first = ("negative_prompt_embeds", "guidance_scale", "nag_scale", "sigmas", "seed_variance")
    embeds, guidance, nag, levels, variance = (alone(name) for name in first)
    passes = alone("passes")
    scales = (*guidance_scales(passes, guidance), nag)
    values = {
        "prompts": prompts,
        "negative_prompt_embeds": embeds,
        "guidance_scale": guidance,
        "sigmas": levels,
        "sampler": sampler,
        "slg_scale": check(0.0, _slg_scale, given["slg_scale"], given["slg"], limits),
        "sigma_shape": check(DEFAULT_SHAPE, _shape, given["sigma_shape"], levels, defaults, limits),
        "nag_scale": nag,
        "negative_prompts": check((), _negatives, given["negative_prompt"], prompts, embeds, scales, limits),
        **start_images.picture(
            problems, given["image"], given["height"], given["width"], given["resize"], margins, limits, defaults
        ),
        "mask_image": mask,
        "outpaint": margins,
        "num_inference_steps": check(1, _steps, given["num_inference_steps"], levels, defaults, limits),
        "latents": given["latents"],
        "seed_variance": variance,
    }
    values |= with_steps(problems, passes, given["num_inference_steps"], values["num_inference_steps"])
    apart: dict[str, Callable[[], Any]] = {
        "seed": lambda: check(0, seed_of, given["seed"], given["latents"], sampler, variance, given["noise"]),
        "strength": lambda: check(1.0, _strength, given["strength"], given["image"], limits, is_masked=is_masked),
        # As pictures say it that were drawn from the prompt as it was given.
        "original_prompt": lambda: () if _is_own(given["original_prompt"], given) else alone("original_prompt"),
    }
    for name, row in ROWS.items():
        if row.attribute and row.attribute not in values:
            values[row.attribute] = apart[name]() if name in apart else alone(name)
    return values


def _checked_alone(problems: Problems, row: Row, given: object, limits: Limits, defaults: RequestDefaults) -> Any:
    """The value of a field that no other one has a say in."""
    if given is None and row.none_is_default:
        given = _default(row, limits, defaults)
        if given is None:
            return None
    # Where the check fails, its message is enough: the fallback is one that adds none.
    fallback = None if row.is_optional else row.kind.fallback
    return problems.check(fallback, row.kind.check, row.argument, given, limits)


def _default(row: Row, limits: Limits, defaults: RequestDefaults) -> object:
    if not isinstance(row.default, Of):
        return row.default
    name = row.default.attribute
    return getattr(defaults if hasattr(defaults, name) else limits, name)


def _prompts(prompt: object, embeds: object, limits: Limits) -> tuple[str, ...]:
    if prompt is not None and embeds is not None:
        message = "{field} and {name[prompt_embeds]} exclude each other, got both; leave one out"
        raise RequestError.of("prompt", message)
    if prompt is None and embeds is None:
        message = "{field} is missing; give a string, a list of strings, {name[prompt_embeds]} or {name[features]}"
        raise RequestError.of("prompt", message)
    return checks.texts("prompt", prompt, limits.max_images) if embeds is None else ()


def _is_own(original: object, given: Mapping[str, Any]) -> bool:
    return original == "" and not given["enhanced_by"]


def _negatives(
    negative: object, prompts: tuple[str, ...], embeds: object, scales: tuple[float, ...], limits: Limits
) -> tuple[str, ...]:
    """The negative prompts by prompt; the empty prompt where none is named. None without guidance of either kind."""
    name = "negative_prompt"
    given = None if negative is None else checks.texts(name, negative, limits.max_images)
    if given is not None and embeds is not None:
        message = "{field} and {name[negative_prompt_embeds]} exclude each other, got both; leave one out"
        raise RequestError.of(name, message)
    if not any(scales) or embeds is not None:
        return ()
    if given is None or isinstance(negative, str):
        return (negative if isinstance(negative, str) else "",) * len(prompts)
    if prompts and len(given) != len(prompts):
        message = "{field} must be one string or as many as prompts ({prompts}), got {given}"
        raise RequestError.of(name, message, prompts=len(prompts), given=len(given))
    return given


def _steps(value: object, levels: tuple[float, ...] | None, defaults: RequestDefaults, limits: Limits) -> int:
    if value is None:
        return len(levels) if levels else defaults.num_inference_steps
    name = "num_inference_steps"
    steps = int(ROWS[name].kind.check(name, value, limits))
    if levels is not None and steps != len(levels):
        message = "{field} must equal the number of {name[sigmas]} ({levels}), got {given}; leave it out"
        raise RequestError.of(name, message, levels=len(levels), given=steps)
    return steps


def _slg_scale(value: object, switch: object, limits: Limits) -> float:
    scale = guidance_checks.slg_scale(value, switch)
    return 0.0 if scale is None else float(ROWS["slg_scale"].kind.check("slg_scale", scale, limits))


def _shape(value: object, levels: tuple[float, ...] | None, defaults: RequestDefaults, limits: Limits) -> str:
    if levels is not None:
        if value not in (None, DEFAULT_SHAPE):  # which pictures with levels of their own remember
            message = "{field} and {name[sigmas]} exclude each other, got both; leave one out"
            raise RequestError.of("sigma_shape", message)
        return DEFAULT_SHAPE
    return str(ROWS["sigma_shape"].kind.check("sigma_shape", defaults.sigma_shape if value is None else value, limits))


def _strength(value: object, image: object, limits: Limits, *, is_masked: bool) -> float:
    if image is None:
        if value is not None:
            message = "{field} is given without an image, got {given}; give the image too, or leave it out"
            raise RequestError.of("strength", message, given=value)
        return 1.0
    if value is None:  # as diffusers' two pipelines have it
        return 1.0 if is_masked else DEFAULT_STRENGTH
    return float(ROWS["strength"].kind.check("strength", value, limits))
