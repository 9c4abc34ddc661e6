"""Whether the passes of a request, or its steps with half of both sides, can be drawn."""

from __future__ import annotations

from max_zimage.errors import Item, RequestError
from max_zimage.request.checks import Problems
from max_zimage.request.facts import RequestFacts
from max_zimage.request.fields import ROWS
from max_zimage.request.passes import TOKEN_SIDE, Pass
from max_zimage.request.passes_fields import LANCZOS
from max_zimage.sampling.schedule import first_step, smallest_strength


def check_passes(asked: RequestFacts) -> None:
    """Refuse passes, or a share of steps with half of both sides, that cannot be drawn or go with something else."""
    problems = Problems()
    if asked.passes is None or len(asked.passes) == 1:
        problems.check(None, _check_upscale, asked)
    if asked.passes is not None:
        problems.check(None, _check_alone, asked, "passes")
        problems.check(None, _check_lists, asked)
        for index, each in enumerate(asked.passes):
            problems.check(None, _check_pass, asked, index, each)
    if asked.progressive:
        problems.check(None, _check_alone, asked, "progressive")
        problems.check(None, _check_halves, asked)
    problems.raise_if_any()


def _check_upscale(asked: RequestFacts) -> None:
    if asked.upscale != LANCZOS:
        message = "{field} would do nothing; give several {name[passes]} too, or leave it out"
        raise RequestError.of("upscale", message)


def _check_alone(asked: RequestFacts, name: str) -> None:
    """Refuse what begins or ends elsewhere than such a run does."""
    others = {
        "image": "begins with noise alone, and an image is given; leave one out",
        "latents": "draws its noise from {name[seed]}, and {name[latents]} are given; leave one out",
    }
    for other, message in others.items():
        if getattr(asked, other) is not None:
            raise RequestError.of(name, "{field} " + message)
    for other in ("denoising_start", "denoising_end"):
        if getattr(asked, other) != ROWS[other].default:
            raise RequestError.of(name, f"{{field}} and {{name[{other}]}} exclude each other, got both; leave one out")


def _check_lists(asked: RequestFacts) -> None:
    for name, is_list in (("sigmas", asked.sigmas), ("guidance_scale", isinstance(asked.guidance_scale, tuple))):
        if is_list:
            message = "{field} has a number for each step, and {name[passes]} have steps of their own; leave one out"
            raise RequestError.of(name, message)
    if asked.progressive:
        message = "{field} and {name[passes]} exclude each other, got both; leave one out"
        raise RequestError.of("progressive", message)


def _check_pass(asked: RequestFacts, index: int, one: Pass) -> None:
    height, width = one.side(asked.height), one.side(asked.width)
    if min(height, width) < TOKEN_SIDE:
        message = "{field} {given} of {width}x{height} pixels makes {small}, and both sides must be at least {least}"
        small = f"{width}x{height}"
        values = {"given": one.scale, "width": asked.width, "height": asked.height, "small": small, "least": TOKEN_SIDE}
        raise RequestError.of(Item("passes", f"[{index}].scale"), message + "; take a larger one", **values)
    if first_step(one.steps, one.strength) >= one.steps:
        message = "{field} {given} leaves none of the {steps} steps; the smallest that leaves one is {smallest}"
        values = {"given": one.strength, "steps": one.steps, "smallest": smallest_strength(one.steps)}
        raise RequestError.of(Item("passes", f"[{index}].strength"), message, **values)


def _check_halves(asked: RequestFacts) -> None:
    step = 2 * TOKEN_SIDE
    for name in ("height", "width"):
        side = getattr(asked, name)
        if side % step:
            message = "{field} must be a multiple of {step} where {name[progressive]} halves it, got {given}; the "
            message += "nearest are {below} and {above}"
            below = side // step * step
            near = {"below": below or step, "above": below + step}
            raise RequestError.of(name, message, step=step, given=side, **near)
    if asked.half_steps >= asked.num_inference_steps:
        message = "{field} {given} leaves none of the {steps} steps for the whole size; it must be at most {most:.6g}"
        values = {"given": asked.progressive, "steps": asked.num_inference_steps}
        most = (asked.num_inference_steps - 1) / asked.num_inference_steps
        raise RequestError.of("progressive", message, most=most, **values)
