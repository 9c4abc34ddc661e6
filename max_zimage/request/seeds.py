"""The seed of a request, from what was given and from what it is for."""

from __future__ import annotations

from max_zimage.errors import RequestError
from max_zimage.request import value_checks
from max_zimage.request.seed_uses import draws_more
from max_zimage.sampling.noise import fresh_seed
from max_zimage.sampling.samplers import is_stochastic


def seed_of(value: object, latents: object, sampler: str, seed_variance: float, noise: object) -> int | None:
    """The seed of a request: a fresh one where it names none and something is drawn, or None.

    Args:
        value: What was given.
        latents: The same.
        sampler: Its.
        seed_variance: Its. With latents and without a seed it is refused with the other fields.
        noise: What was given of who draws the starting noise.

    Raises:
        RequestError: If it is none, or there is nothing to draw.
    """
    if value is None:
        return fresh_seed() if latents is None or is_stochastic(sampler) else None
    if latents is not None and not draws_more(sampler, seed_variance):
        message = "{field} and {name[latents]} exclude each other, got both; the {field} only draws the {name[latents]}"
        raise RequestError.of("seed", message)
    return value_checks.seed("seed", value, noise)
