"""Whether what a request says of its noise, and of the part of the way it goes, fits together."""

from __future__ import annotations

from max_zimage.errors import RequestError
from max_zimage.request.facts import RequestFacts
from max_zimage.request.fields import ROWS
from max_zimage.sampling import samplers

_SHARE = ROWS["seed_variance_share"].default


def steps_between(steps: int, start: float, end: float) -> range:
    """The steps that a part of the way consists of: those with start <= step / steps < end.

    >>> steps_between(8, 0.0, 0.5), steps_between(8, 0.5, 1.0)
    (range(0, 4), range(4, 8))
    """
    found = [step for step in range(steps) if start <= step / steps < end]
    return range(found[0], found[-1] + 1) if found else range(0)


def check_noise(asked: RequestFacts) -> None:
    """Refuse what contradicts itself or would do nothing."""
    is_drawn = asked.latents is None
    if asked.noise != "philox" and not is_drawn:
        raise RequestError.of("noise", "{field} draws the {name[latents]}, which are given too; leave one out")
    if asked.variation_seed is not None and not is_drawn:
        message = "{field} and {name[latents]} exclude each other, got both; leave one out"
        raise RequestError.of("variation_seed", message)
    if (asked.variation_seed is None) != (asked.variation_strength == 0):
        message = "{field} is {given}, and {name[variation_seed]} is {seed}; give both, or neither"
        values = {"given": asked.variation_strength, "seed": asked.variation_seed}
        raise RequestError.of("variation_strength", message, **values)
    if asked.seed_variance and asked.seed is None:
        message = "{field} is drawn from the {name[seed]}; give that beside the {name[latents]}, or leave {field} out"
        raise RequestError.of("seed_variance", message)
    if asked.seed_variance and not asked.seed_variance_share:
        message = "{field} 0 moves none of the numbers; set it above 0, or {name[seed_variance]} to 0"
        raise RequestError.of("seed_variance_share", message)
    if not asked.seed_variance and asked.seed_variance_share != _SHARE:
        message = "{field} would do nothing; set {name[seed_variance]} above 0 too, or leave it out"
        raise RequestError.of("seed_variance_share", message)
    _check_part(asked)


def _check_part(asked: RequestFacts) -> None:
    start, end, steps = asked.denoising_start, asked.denoising_end, asked.num_inference_steps
    if (start, end) == (0.0, 1.0):
        return
    if not start < end:
        message = "{field} must be below {name[denoising_end]}, got {start:g} and {end:g}"
        raise RequestError.of("denoising_start", message, start=start, end=end)
    name = "denoising_start" if start else "denoising_end"
    if asked.image is not None:
        message = "{field} and an image exclude each other, got both; use {name[strength]}, or {name[latents]}"
        raise RequestError.of(name, message)
    if start and asked.latents is None:
        message = "{field} goes on from the {name[latents]} of a run that ended there; give them"
        raise RequestError.of(name, message)
    if not steps_between(steps, start, end):
        message = "{field} {start:g} and {name[denoising_end]} {end:g} hold none of the {steps} steps; widen the part"
        raise RequestError.of(name, message, start=start, end=end, steps=steps)
    for other, is_on in (("apg_momentum", asked.apg_momentum != 0), ("zero_init", asked.zero_init and start > 0)):
        if is_on:
            message = "{field} goes by what lies in the other part of the run; leave it out, or draw the run as a whole"
            raise RequestError.of(other, message)
    if samplers.remembers(asked.sampler):
        message = "{field}: {sampler} remembers steps that lie in the other part; take one that does not: {other}"
        raise RequestError.of(name, message, sampler=asked.sampler, other=", ".join(samplers.forgetful()))
