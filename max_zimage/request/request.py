"""What one call of the pipeline asks for, validated once, on the host."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from max_zimage.errors import RequestError
from max_zimage.images.read import resized
from max_zimage.request import checks
from max_zimage.request import start_image as start_images
from max_zimage.request.checks import OutputType, Problems
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.schedule_checks import checked_schedule, has_a_step
from max_zimage.sampling.noise import fresh_seed
from max_zimage.sampling.schedule import DEFAULT_STRENGTH, Schedule, ScheduleSpec, first_step
from max_zimage.sampling.step_cache import StepCache

__all__ = ["GenerationRequest", "Limits", "RequestDefaults", "RequestError"]

FloatArray = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest:
    """One request; made by `create`, which validates it.

    Attributes:
        prompts: The prompts; empty where `prompt_embeds` stand in for them.
        negative_prompts: One a prompt; empty without guidance or with `negative_prompt_embeds`.
        height: Pixels, a multiple of 16.
        width: Pixels, a multiple of 16.
        num_inference_steps: Evaluations of the model.
        sigmas: Noise levels before the shift, without the final 0; None spaces them evenly.
        shift: Takes the place of the checkpoint's shift.
        guidance_scale: Guidance is on above 0: prediction = positive + scale * (positive - negative).
        cfg_normalization: Limit of the guided prediction's norm as a factor of the positive one's; 0 is off.
        cfg_truncation: Steps whose timestep (1 - sigma) is above this run without guidance.
        num_images_per_prompt: Pictures of every prompt.
        seed: Seed of the first picture, picture k has seed + k; None where `latents` are given.
        max_sequence_length: Tokens a prompt may have, chat template included.
        latents: float32 [num_images, channels, height / 8, width / 8], the starting noise.
        prompt_embeds: float32 [tokens, caption_dim] a prompt.
        negative_prompt_embeds: float32 [tokens, caption_dim] a prompt.
        image: uint8 [rows, columns, 3], what image-to-image begins with, as it was given; or None.
        strength: How far image-to-image goes from it, in (0, 1]; 1 without an image.
        step_cache: Leaves out steps, or None for none.
        output_type: "pil" pictures, "np" uint8 [num_images, height, width, 3], or "latent" float32 latents.
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    height: int
    width: int
    num_inference_steps: int
    sigmas: tuple[float, ...] | None
    shift: float | None
    guidance_scale: float
    cfg_normalization: float
    cfg_truncation: float
    num_images_per_prompt: int
    seed: int | None
    max_sequence_length: int
    latents: FloatArray | None
    prompt_embeds: tuple[FloatArray, ...] | None
    negative_prompt_embeds: tuple[FloatArray, ...] | None
    image: npt.NDArray[np.uint8] | None
    strength: float
    step_cache: StepCache | None
    output_type: OutputType

    @property
    def num_prompts(self) -> int:
        """Prompts, given as text or as features."""
        return len(self.prompts if self.prompt_embeds is None else self.prompt_embeds)

    @property
    def num_images(self) -> int:
        """Pictures; picture p * num_images_per_prompt + j is copy j of prompt p."""
        return self.num_prompts * self.num_images_per_prompt

    @property
    def use_guidance(self) -> bool:
        """Whether any step may run the negative branch."""
        return self.guidance_scale > 0

    @property
    def first_step(self) -> int:
        """The step that the schedule begins with: above 0 where the image's strength leaves some out."""
        return 0 if self.image is None else first_step(self.num_inference_steps, self.strength)

    def schedule(self, spec: ScheduleSpec) -> Schedule:
        """Its way from noise to picture, without the steps that its strength leaves out; see `checked_schedule`."""
        whole = checked_schedule(spec, self.num_inference_steps, self.sigmas, self.shift)
        return whole.after(self.first_step)

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
    def create(
        cls,
        *,
        limits: Limits,
        defaults: RequestDefaults,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        shift: float | None = None,
        guidance_scale: float | None = None,
        cfg_normalization: bool | float = False,
        cfg_truncation: float | None = 1.0,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        max_sequence_length: int | None = None,
        latents: FloatArray | None = None,
        prompt_embeds: Sequence[FloatArray] | None = None,
        negative_prompt_embeds: Sequence[FloatArray] | None = None,
        image: object = None,
        strength: float | None = None,
        resize: bool | None = None,
        step_cache: StepCache | str | None = None,
        output_type: str = "pil",
    ) -> GenerationRequest:
        """Validate the arguments of diffusers' `ZImagePipeline.__call__`, with `seed` in place of a generator.

        Raises:
            RequestError: With every problem found: what was given, what is allowed, what to do.
        """
        check, optional = (problems := Problems()).check, problems.optional
        prompts = check((), _prompts, prompt, prompt_embeds, limits)
        negative_embeds = optional(checks.embeddings, "negative_prompt_embeds", negative_prompt_embeds, limits)
        guidance = check(0.0, checks.guidance, _or(guidance_scale, defaults.guidance_scale))
        levels = optional(checks.sigmas, "sigmas", sigmas, limits.max_steps)
        request = cls(
            prompts=prompts,
            negative_prompts=check((), _negatives, negative_prompt, prompts, negative_embeds, guidance, limits),
            **start_images.picture(problems, image, height, width, resize, limits, defaults),
            num_inference_steps=check(1, _steps, num_inference_steps, levels, defaults, limits),
            sigmas=levels,
            shift=None if shift is None else check(1.0, checks.shift, shift),
            guidance_scale=guidance,
            cfg_normalization=check(0.0, checks.normalization, cfg_normalization),
            cfg_truncation=check(1.0, checks.number, "cfg_truncation", _or(cfg_truncation, 1.0)),
            num_images_per_prompt=check(1, _copies, num_images_per_prompt, limits),
            seed=check(0, _seed, seed, latents),
            max_sequence_length=check(1, _tokens, max_sequence_length, limits),
            latents=latents,
            prompt_embeds=optional(checks.embeddings, "prompt_embeds", prompt_embeds, limits),
            negative_prompt_embeds=negative_embeds,
            strength=check(1.0, _strength, strength, image),
            step_cache=check(None, checks.step_cache, step_cache, defaults.step_cache),
            output_type=check("pil", checks.output_type, output_type),
        )
        problems.raise_if_any()
        return _with_useful_cache(_checked(request, limits, negative_prompt, resize), is_default=step_cache is None)


def _checked(
    request: GenerationRequest, limits: Limits, negative_prompt: str | Sequence[str] | None, resize: bool | None
) -> GenerationRequest:
    """The request, if it is right as a whole."""
    _check_together(request, limits, resize)
    _warn_of_unused(request, negative_prompt)
    return request


def _with_useful_cache(request: GenerationRequest, *, is_default: bool) -> GenerationRequest:
    """The request without a step cache that would compute every step; refused where it was asked for by name."""
    steps, cache = request.num_inference_steps - request.first_step, request.step_cache
    if cache is None or not cache.covers(steps):
        return request
    problem = f"step_cache {cache}: its warm-up takes all {steps} steps and nothing is left out"
    if not is_default:
        raise RequestError(f"{problem}; ask for more steps, lower warmup_steps, or set step_cache to off")
    warnings.warn(f"{problem}; this request runs without it", stacklevel=3)
    return replace(request, step_cache=None)


def _tokens(value: object, limits: Limits) -> int:
    return checks.count("max_sequence_length", _or(value, limits.default_tokens), limits.max_tokens)


def _copies(value: object, limits: Limits) -> int:
    return checks.count("num_images_per_prompt", value, limits.max_images)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _prompts(prompt: object, embeds: object, limits: Limits) -> tuple[str, ...]:
    if prompt is not None and embeds is not None:
        raise RequestError("prompt and prompt_embeds exclude each other, got both; leave one out")
    if prompt is None and embeds is None:
        raise RequestError("prompt is missing; give a string, a list of strings, or prompt_embeds")
    return checks.texts("prompt", prompt, limits.max_images) if embeds is None else ()


def _negatives(
    negative: object, prompts: tuple[str, ...], embeds: object, guidance: float, limits: Limits
) -> tuple[str, ...]:
    """The negative prompts by prompt; the empty prompt where none is named. None without guidance."""
    given = None if negative is None else checks.texts("negative_prompt", negative, limits.max_images)
    if given is not None and embeds is not None:
        raise RequestError("negative_prompt and negative_prompt_embeds exclude each other, got both; leave one out")
    if guidance == 0 or embeds is not None:
        return ()
    if given is None or isinstance(negative, str):
        return (negative if isinstance(negative, str) else "",) * len(prompts)
    if prompts and len(given) != len(prompts):
        raise RequestError(
            f"negative_prompt must be one string or as many as prompts ({len(prompts)}), got {len(given)}"
        )
    return given


def _steps(value: object, levels: tuple[float, ...] | None, defaults: RequestDefaults, limits: Limits) -> int:
    if value is None:
        return len(levels) if levels else defaults.num_inference_steps
    steps = checks.whole_number("num_inference_steps", value, low=1, high=limits.max_steps)
    if levels is not None and steps != len(levels):
        raise RequestError(
            f"num_inference_steps must equal the number of sigmas ({len(levels)}), got {steps}; leave it out"
        )
    return steps


def _seed(value: object, latents: object) -> int | None:
    if latents is not None and value is not None:
        raise RequestError("seed and latents exclude each other, got both; the seed only draws the latents")
    if latents is not None:
        return None
    return fresh_seed() if value is None else checks.seed(value)


def _strength(value: object, image: object) -> float:
    if image is None:
        if value is not None:
            raise RequestError(f"strength is given without an image, got {value}; give the image too, or leave it out")
        return 1.0
    return DEFAULT_STRENGTH if value is None else checks.strength(value)


def _warn_of_unused(request: GenerationRequest, negative_prompt: str | Sequence[str] | None) -> None:
    # The reference takes a negative prompt without guidance and leaves it aside; taking it in silence would mislead.
    if not request.use_guidance and (request.negative_prompt_embeds or any(negative_prompt or ())):
        warnings.warn("guidance_scale is 0: the negative prompt has no effect", stacklevel=3)


def _check_together(request: GenerationRequest, limits: Limits, resize: bool | None) -> None:
    """What depends on several arguments, each of them right by itself."""
    if request.num_images > limits.max_images:
        raise RequestError(
            f"a request may make {limits.max_images} pictures, got {request.num_prompts} prompts with "
            f"{request.num_images_per_prompt} each; make several requests"
        )
    if request.image is not None:
        has_a_step(request.strength, request.num_inference_steps)
        start_images.check_size(request.image, request.height, request.width, resize)
    negatives = request.negative_prompt_embeds
    if request.use_guidance and negatives is None and request.prompt_embeds is not None:
        raise RequestError(
            "prompt_embeds with guidance need negative_prompt_embeds too; give them, or set guidance_scale to 0"
        )
    if negatives is not None and len(negatives) != request.num_prompts:
        raise RequestError(
            f"negative_prompt_embeds must hold one array a prompt ({request.num_prompts}), got {len(negatives)}"
        )
    if request.latents is not None:
        shape = (request.num_images, limits.latent_channels, request.height // 8, request.width // 8)
        checks.array("latents", request.latents, shape, f"[images, channels, height / 8, width / 8] = {list(shape)}")
