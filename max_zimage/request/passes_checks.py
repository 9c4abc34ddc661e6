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
        for name in ("height", "width"):
            problems.check(None, _check_half_side, asked, name)
        problems.check(None, _check_half_steps, asked)
    problems.raise_if_any()


def _check_upscale(asked: RequestFacts) -> None:
    if asked.upscale != LANCZOS:
        message = "{field} would do nothing; give several {name[passes]} too, or leave it out"
        raise RequestError.of("upscale", message)


def _check_alone(asked: RequestFacts, name: str) -> None:
    """Refuse what begins or ends elsewhere than such a run does."""
    others = {other: getattr(asked, other) is not None for other in ("image", "latents")}
    others |= {other: getattr(asked, other) != ROWS[other].default for other in ("denoising_start", "denoising_end")}
    for other in (other for other, is_given in others.items() if is_given):
        message = (
            f"{{field}} and {{name[{other}]}} exclude each other, got both: such a run begins with noise of the seed "
        )
        raise RequestError.of(name, message + "and ends with the picture; leave one out")


def _check_lists(asked: RequestFacts) -> None:
    for name, is_list in (("sigmas", asked.sigmas), ("guidance_scale", isinstance(asked.guidance_scale, tuple))):
        if is_list:
            message = "{field} with a number for each step and {name[passes]}, which have steps of their own, exclude "
            raise RequestError.of(name, message + "each other, got both; leave one out")
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


def _check_half_side(asked: RequestFacts, name: str) -> None:
    step, side = 2 * TOKEN_SIDE, getattr(asked, name)
    if side % step:
        message = "{field} must be a multiple of {step} where {name[progressive]} halves it, got {given}; the nearest "
        below = side // step * step
        message += "are {below} and {above}" if below else "is {above}"
        raise RequestError.of(name, message, step=step, given=side, below=below, above=below + step)


def _check_half_steps(asked: RequestFacts) -> None:
    count = asked.num_inference_steps
    if asked.half_steps >= count:
        message = "{field} {given} leaves none of the {steps} steps for the whole size; "
        if count == 1:
            raise RequestError.of("progressive", message + "ask for more steps", given=asked.progressive, steps=count)
        most = (count - 1) / count
        message += "the largest that leaves one is {most:.6g}"
        raise RequestError.of("progressive", message, given=asked.progressive, steps=count, most=most)
