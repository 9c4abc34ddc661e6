"""What one call of the pipeline asks for, validated once, on the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from max_zimage.errors import Problem, RequestError, RequestWarning
from max_zimage.images.read import resized
from max_zimage.request import checks, guidance_checks
from max_zimage.request import start_image as start_images
from max_zimage.request.cache_checks import with_useful_cache
from max_zimage.request.checks import Problems
from max_zimage.request.facts import RequestFacts
from max_zimage.request.fields import ROWS
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.noise_checks import check_noise, steps_between
from max_zimage.request.row import Of, Row
from max_zimage.request.schedule_checks import check_evaluations, checked_schedule, has_a_step
from max_zimage.sampling import samplers
from max_zimage.sampling.names import DEFAULT_SAMPLER, DEFAULT_SHAPE
from max_zimage.sampling.noise import fresh_seed, image_seed
from max_zimage.sampling.ranges import DEFAULT_STRENGTH
from max_zimage.sampling.schedule import Schedule, ScheduleSpec
from max_zimage.sampling.starting_noise import NoiseSource

__all__ = ["GenerationRequest", "Limits", "RequestDefaults", "RequestError"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest(RequestFacts):
    """One request; made by `create`, which validates it. Attributes: see `RequestFields`."""

    def schedule(self, spec: ScheduleSpec) -> Schedule:
        """Its way from noise to picture, without the steps that its strength leaves out; see `checked_schedule`."""
        whole = checked_schedule(spec, self)
        if self.denoising_start > 0 or self.denoising_end < 1:
            return whole.between(steps_between(self.num_inference_steps, self.denoising_start, self.denoising_end))
        # An image is mixed with as much noise as its level says, whatever the shape.
        return whole if self.image is None else replace(whole, noise_scale=1.0).after(self.first_step)

    def picture(self, index: int) -> GenerationRequest:
        """The request of one picture alone, by its seeds."""
        variation = None if self.variation_seed is None else image_seed(self.variation_seed, index)
        seed = None if self.seed is None else image_seed(self.seed, index)
        return replace(self, seed=seed, variation_seed=variation)

    def noise_source(self, seed: int | None) -> NoiseSource:
        """Where its starting noise comes from.

        Args:
            seed: Of the first picture.
        """
        return NoiseSource(
            kind="torch" if self.noise == "torch" else "philox",
            seed=seed or 0,
            variation_seed=self.variation_seed,
            variation_strength=self.variation_strength,
            from_image=self.image is not None,
        )

    @cached_property
    def start_image(self) -> npt.NDArray[np.uint8] | None:
        """The image in the picture's size, uint8 [height, width, 3], or None."""
        if self.image is None or self.image.shape[:2] == (self.height, self.width):
            return self.image
        return resized(self.image, self.height, self.width)

    @cached_property
    def image_digest(self) -> str | None:
        """By which the image is known again, whatever file it comes in; see `max_zimage.request.start_image`."""
        return None if self.image is None else start_images.digest(self.image)

    @classmethod
    def create(cls, *, limits: Limits, defaults: RequestDefaults, **arguments: object) -> GenerationRequest:
        """Validate the arguments of diffusers' `ZImagePipeline.__call__`, with `seed` in place of a generator.

        Args:
            limits: What the checkpoint can do at most.
            defaults: What it does where nothing is asked for.
            **arguments: Fields by their names in `max_zimage.request.fields`; what is left out is the default.

        Raises:
            RequestError: With every problem found: what was given, what is allowed, what to do.
            TypeError: If there is no such argument.
        """
        unknown = [name for name in arguments if name not in ROWS]
        if unknown:
            raise TypeError(f"a request has no {', '.join(unknown)}; it has {', '.join(ROWS)}")
        problems = Problems()
        nothing = {name: None if row.none_is_default else row.default for name, row in ROWS.items()}
        values = _values(problems, nothing | arguments, limits, defaults)
        problems.raise_if_any()
        request = cls(**values)
        _check_together(request, limits, arguments.get("resize"))
        _warn_of_unused(request, arguments.get("negative_prompt"))
        return with_useful_cache(request, is_default=arguments.get("step_cache") is None)


def _values(problems: Problems, given: Mapping[str, Any], limits: Limits, defaults: RequestDefaults) -> dict[str, Any]:
    """The attributes of a request, each checked by itself and with those that it depends on."""
    check = problems.check

    def alone(name: str) -> Any:
        return _checked_alone(problems, ROWS[name], given[name], limits, defaults)

    # First what others depend on.
    prompts = check((), _prompts, given["prompt"], given["prompt_embeds"], limits)
    embeds, guidance, levels = (alone(name) for name in ("negative_prompt_embeds", "guidance_scale", "sigmas"))
    sampler = alone("sampler") or DEFAULT_SAMPLER
    values = {
        "prompts": prompts,
        "negative_prompt_embeds": embeds,
        "guidance_scale": guidance,
        "sigmas": levels,
        "sampler": sampler,
        "slg_scale": check(0.0, _slg_scale, given["slg_scale"], given["slg"], limits),
        "sigma_shape": check(DEFAULT_SHAPE, _shape, given["sigma_shape"], levels, defaults, limits),
        "negative_prompts": check((), _negatives, given["negative_prompt"], prompts, embeds, guidance, limits),
        **start_images.picture(
            problems, given["image"], given["height"], given["width"], given["resize"], limits, defaults
        ),
        "num_inference_steps": check(1, _steps, given["num_inference_steps"], levels, defaults, limits),
        "latents": given["latents"],
    }
    apart: dict[str, Callable[[], Any]] = {
        "seed": lambda: check(0, _seed, given["seed"], given["latents"], sampler, limits),
        "strength": lambda: check(1.0, _strength, given["strength"], given["image"], limits),
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
        message = "{field} is missing; give a string, a list of strings, or {name[prompt_embeds]}"
        raise RequestError.of("prompt", message)
    return checks.texts("prompt", prompt, limits.max_images) if embeds is None else ()


def _negatives(
    negative: object, prompts: tuple[str, ...], embeds: object, guidance: float | tuple[float, ...], limits: Limits
) -> tuple[str, ...]:
    """The negative prompts by prompt; the empty prompt where none is named. None without guidance."""
    name = "negative_prompt"
    given = None if negative is None else checks.texts(name, negative, limits.max_images)
    if given is not None and embeds is not None:
        message = "{field} and {name[negative_prompt_embeds]} exclude each other, got both; leave one out"
        raise RequestError.of(name, message)
    is_guided = any(guidance) if isinstance(guidance, tuple) else guidance != 0
    if not is_guided or embeds is not None:
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


def _seed(value: object, latents: object, sampler: str, limits: Limits) -> int | None:
    if latents is not None and not samplers.is_stochastic(sampler):
        if value is None:
            return None
        message = "{field} and {name[latents]} exclude each other, got both; the {field} only draws the {name[latents]}"
        raise RequestError.of("seed", message)
    return fresh_seed() if value is None else int(ROWS["seed"].kind.check("seed", value, limits))


def _strength(value: object, image: object, limits: Limits) -> float:
    if image is None:
        if value is not None:
            message = "{field} is given without an image, got {given}; give the image too, or leave it out"
            raise RequestError.of("strength", message, given=value)
        return 1.0
    return DEFAULT_STRENGTH if value is None else float(ROWS["strength"].kind.check("strength", value, limits))


def _warn_of_unused(request: GenerationRequest, negative_prompt: object) -> None:
    # The reference takes a negative prompt without guidance and leaves it aside; taking it in silence would mislead.
    texts = (negative_prompt,) if isinstance(negative_prompt, str) else negative_prompt
    named = isinstance(texts, Sequence) and any(texts)
    if not request.use_guidance and (request.negative_prompt_embeds or named):
        problem = Problem.of("guidance_scale", "{field} is 0: the negative prompt has no effect")
        warnings.warn(RequestWarning(problem), stacklevel=3)


def _check_together(request: GenerationRequest, limits: Limits, resize: Any) -> None:
    """What depends on several arguments, each of them right by itself."""
    if request.num_images > limits.max_images:
        message = "a request may make {most} pictures, got {prompts} prompts with {copies} each; make several requests"
        prompts, copies = request.num_prompts, request.num_images_per_prompt
        raise RequestError.of(None, message, most=limits.max_images, prompts=prompts, copies=copies)
    if request.image is not None:
        has_a_step(request.strength, request.num_inference_steps)
        start_images.check_size(request.image, request.height, request.width, resize)
    check_evaluations(request, request.num_inference_steps - request.first_step, limits.max_steps)
    guidance_checks.check_guidance(request, limits.num_layers)
    check_noise(request)
    negatives = request.negative_prompt_embeds
    if request.use_guidance and negatives is None and request.prompt_embeds is not None:
        raise RequestError.of(
            "prompt_embeds",
            "{field} with guidance need {name[negative_prompt_embeds]} too; give them, or set {name[guidance_scale]} "
            "to 0",
        )
    if negatives is not None and len(negatives) != request.num_prompts:
        message = "{field} must hold one array a prompt ({prompts}), got {given}"
        values = {"prompts": request.num_prompts, "given": len(negatives)}
        raise RequestError.of("negative_prompt_embeds", message, **values)
    if request.latents is not None:
        shape = (request.num_images, limits.latent_channels, request.height // 8, request.width // 8)
        checks.array("latents", request.latents, shape, f"[images, channels, height / 8, width / 8] = {list(shape)}")
