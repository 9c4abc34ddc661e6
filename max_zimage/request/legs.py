"""The parts of a run, each with latents of a size of its own: its passes, or its steps with half of both sides.

    passes        noise -> leg 1 -> picture -> resized picture -> leg 2 -> ...    (or latents -> interpolated latents)
    progressive   noise -> leg 1 -> clean estimate -> interpolated estimate -> leg 2

What a leg goes on from is mixed with noise of the level that the leg begins at: sigma · noise + (1 - sigma) · it.

Reference: generate_multipass of llm-dit (src/llm_dit/pipelines/z_image.py) for what a pass is; strength is that of
diffusers, pipelines/z_image/pipeline_z_image_img2img.py (get_timesteps).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from max_zimage.request.guidance_checks import check_legs
from max_zimage.request.passes_fields import BICUBIC, LANCZOS
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.schedule import Schedule, ScheduleSpec, first_step
from max_zimage.sampling.starting_noise import NoiseSource

_LATENT_SIDE = 8  # pixels of a latent's, for the order in which torch's generator draws

Begins = Literal["noise", "picture", "latents", "estimate"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Leg:
    """One part of a run.

    Attributes:
        asked: The request of this part alone: its size, steps and guidance.
        plan: The steps that it takes.
        number: From 0; the noise of each leg is another.
        begins: What it goes on from: nothing but noise, the picture or the latents that the leg before ended with, or
            what its last evaluation took for the clean latents.
        drawn: Height and width of the latents that torch's generator has drawn noise for before, one after the other.
    """

    asked: GenerationRequest
    plan: Schedule
    number: int = 0
    begins: Begins = "noise"
    drawn: tuple[tuple[int, int], ...] = ()

    def noise_source(self, request: GenerationRequest, picture: int) -> NoiseSource:
        """Where the noise of one picture comes from.

        Args:
            request: The whole request.
            picture: Which of its pictures.
        """
        one = request.picture(picture)
        from_image = self.begins == "picture"
        return replace(one.noise_source(one.seed), leg=self.number, drawn=self.drawn, from_image=from_image)


def legs_of(request: GenerationRequest, spec: ScheduleSpec) -> tuple[Leg, ...]:
    """The legs of a request, one for most.

    Args:
        request: The request.
        spec: The checkpoint's schedule.

    Raises:
        RequestError: If a step would have no length in float32, or guidance would do nothing in any.
    """
    legs = _legs(request, spec)
    check_legs(request, [(leg.asked, leg.plan) for leg in legs])
    return legs


def _legs(request: GenerationRequest, spec: ScheduleSpec) -> tuple[Leg, ...]:
    if request.passes is not None:
        return _of_passes(request, spec)
    plan = request.schedule(spec)
    if not request.progressive:
        return (Leg(asked=request, plan=plan),)
    # The noise levels are those of the whole size throughout.
    half, count = request.half_steps, request.num_inference_steps
    small = replace(request, progressive=0.0, height=request.height // 2, width=request.width // 2)
    # A first evaluation that predicts nothing is the run's and not the leg's.
    rest = replace(request, progressive=0.0, zero_init=False)
    return (
        Leg(asked=small, plan=plan.between(range(half))),
        Leg(asked=rest, plan=plan.between(range(half, count)), number=1, begins="estimate", drawn=(_sides(small),)),
    )


def _of_passes(request: GenerationRequest, spec: ScheduleSpec) -> tuple[Leg, ...]:
    legs: list[Leg] = []
    begins: Begins = "picture" if request.upscale == LANCZOS else "latents"
    drawn: list[tuple[int, int]] = []
    for number, each in enumerate(request.passes or ()):
        asked = replace(
            request,
            passes=None,
            upscale=LANCZOS,
            height=each.side(request.height),
            width=each.side(request.width),
            num_inference_steps=each.steps,
            strength=1.0 if number == 0 else each.strength,
            shift=request.shift if each.shift is None else each.shift,
            guidance_scale=request.guidance_scale if each.guidance_scale is None else each.guidance_scale,
        )
        plan = asked.schedule(spec)
        if number == 0:
            legs.append(Leg(asked=asked, plan=plan))
        else:
            taken = replace(plan, noise_scale=1.0).after(first_step(each.steps, each.strength))
            legs.append(Leg(asked=asked, plan=taken, number=number, begins=begins, drawn=tuple(drawn)))
        # As diffusers: image-to-image first samples what the picture stands for.
        drawn += [_sides(asked)] * (2 if number and request.upscale != BICUBIC else 1)
    return tuple(legs)


def _sides(asked: GenerationRequest) -> tuple[int, int]:
    return asked.height // _LATENT_SIDE, asked.width // _LATENT_SIDE
