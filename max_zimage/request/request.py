"""What one call of the pipeline asks for, validated once, on the host."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from max_zimage.errors import Problem, RequestError, RequestWarning
from max_zimage.request import start_image as start_images
from max_zimage.request.cache_checks import with_useful_cache
from max_zimage.request.checks import Problems
from max_zimage.request.dype_checks import warn_of_small_picture
from max_zimage.request.facts import RequestFacts
from max_zimage.request.fields import ROWS
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.mask_checks import framed, mask_digest, picture_mask, warn_of_kept_picture
from max_zimage.request.nag_checks import check_levels
from max_zimage.request.noise_checks import steps_between
from max_zimage.request.schedule_checks import checked_schedule
from max_zimage.request.together import check_together
from max_zimage.request.values import values_of
from max_zimage.sampling.schedule import Schedule, ScheduleSpec

__all__ = ["GenerationRequest", "Limits", "RequestDefaults", "RequestError"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest(RequestFacts):
    """One request; made by `create`, which validates it. Attributes: see `RequestFields`."""

    def schedule(self, spec: ScheduleSpec) -> Schedule:
        """Its way from noise to picture, without the steps that its strength leaves out; see `checked_schedule`."""
        whole = checked_schedule(spec, self)
        check_levels(self, whole.sigmas[self.first_step])
        if self.denoising_start > 0 or self.denoising_end < 1:
            return whole.between(steps_between(self.num_inference_steps, self.denoising_start, self.denoising_end))
        # An image is mixed with as much noise as its level says, whatever the shape.
        return whole if self.image is None else replace(whole, noise_scale=1.0).after(self.first_step)

    @cached_property
    def start_image(self) -> npt.NDArray[np.uint8] | None:
        """The image in the picture's size, uint8 [height, width, 3], or None."""
        if self.image is None:
            return None
        return framed(self.image, self.outpaint, self.height, self.width)

    @cached_property
    def picture_mask(self) -> npt.NDArray[np.uint8] | None:
        """What of that image is drawn anew, uint8 [height, width], 255 for all of it; None for the whole image."""
        if self.image is None or not self.is_masked:
            return None
        return picture_mask(self.mask_image, self.image, self.outpaint, self.height, self.width)

    def settled(self) -> GenerationRequest:
        """The same request with image and mask in the picture's size."""
        return replace(self, image=self.start_image, mask_image=self.picture_mask, outpaint=None)

    @cached_property
    def image_digest(self) -> str | None:
        """By which the image is known again, whatever file it comes in; see `max_zimage.request.start_image`."""
        return None if self.image is None else start_images.digest(self.image)

    @cached_property
    def mask_digest(self) -> str | None:
        """By which the mask is known again; see `max_zimage.request.mask_checks`."""
        return None if self.mask_image is None else mask_digest(self.mask_image)

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
        values = values_of(problems, nothing | defaults.beneath(arguments), limits, defaults)
        problems.raise_if_any()
        request = cls(**values)
        check_together(request, limits, arguments.get("resize"))
        _warn_of_unused(request, arguments.get("negative_prompt"))
        warn_of_small_picture(request)
        warn_of_kept_picture(request, request.picture_mask)
        is_default = arguments.get("step_cache") is None
        return with_useful_cache(request, is_default=is_default, limits=limits)


def _warn_of_unused(request: GenerationRequest, negative_prompt: object) -> None:
    # The reference takes a negative prompt without guidance and leaves it aside; taking it in silence would mislead.
    texts = (negative_prompt,) if isinstance(negative_prompt, str) else negative_prompt
    named = isinstance(texts, Sequence) and any(texts)
    if not request.uses_negative and (request.negative_prompt_embeds or named):
        message = "{field} is 0: the negative prompt has no effect; {name[nag_scale]} gives it one without guidance"
        problem = Problem.of("guidance_scale", message)
        warnings.warn(RequestWarning(problem), stacklevel=3)
