"""What a run draws from its seed beside the noise that it begins with."""

from __future__ import annotations

from max_zimage.sampling.samplers import is_stochastic


def draws_more(sampler: str, seed_variance: object) -> bool:
    """Whether a seed has something to do where the starting noise, or latents behind it, are given.

    Args:
        sampler: One of `max_zimage.sampling.names.SAMPLERS`.
        seed_variance: How far features are moved; None or 0 for not at all.

    >>> draws_more("euler", 0.0), draws_more("euler", 0.1), draws_more("euler_ancestral", None)
    (False, True, True)
    """
    return is_stochastic(sampler) or bool(seed_variance)
