"""Whether a request's step cache has anything to do, and can do it with the request's sampler."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TypeVar

from max_zimage.errors import Problem, RequestError, RequestWarning
from max_zimage.request.facts import RequestFacts
from max_zimage.request.guidance_checks import guidance_comes_on
from max_zimage.request.limits import Limits
from max_zimage.sampling import samplers
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache, TaylorSeer

R = TypeVar("R", bound=RequestFacts)

_OFF = "this request runs without it"


def with_useful_cache(request: R, *, is_default: bool, limits: Limits | None = None) -> R:
    """The request, without a step cache that would do nothing.

    Args:
        request: The request.
        is_default: Whether the cache is one that the request did not ask for: then it is left out with a warning.
        limits: What the checkpoint can do, as it was loaded.

    Raises:
        RequestError: If it was asked for by name.
    """
    found = _problem(request, limits)
    if found is None:
        return request
    message, remedy, values = found
    if not is_default:
        raise RequestError.of("step_cache", message + remedy, **values)
    warnings.warn(RequestWarning(Problem.of("step_cache", message + _OFF, **values)), stacklevel=3)
    return replace(request, step_cache=None)


def check_shared(cache: StepCache | None, groups: int) -> None:
    """Refuse a step cache, of requests that say nothing of one, which several devices cannot share.

    Args:
        cache: The cache.
        groups: Of devices; 0 for one device.

    Raises:
        RequestError: If it is first-block caching, and they share branches.
    """
    if groups > 1 and isinstance(cache, FirstBlockCache):
        message = "{field} {cache} takes one branch at a time, which devices cannot share; take taylorseer, or "
        message += 'split="tokens"'
        raise RequestError.of("step_cache", message, cache=cache)


def _problem(request: RequestFacts, limits: Limits | None) -> tuple[str, str, dict[str, object]] | None:
    """What is wrong with the cache, what to do, and the values of both; or None."""
    cache = request.step_cache
    if cache is None:
        return None
    if limits is not None and limits.groups > 1 and isinstance(cache, FirstBlockCache):
        return (
            "{field} {cache} takes one branch at a time, and the devices share branches; ",
            "set {field} to off or taylorseer, or have the devices share tokens alone",
            {"cache": cache},
        )
    if limits is not None and limits.streams_blocks and isinstance(cache, FirstBlockCache):
        return (
            "{field} {cache} and streamed blocks do not go together: the first block decides within one graph about "
            "blocks that come one at a time; ",
            "set {field} to off or taylorseer, or take another placement",
            {"cache": cache},
        )
    if request.slg_scale:
        return (
            "{field} {cache} and skip-layer guidance do not go together: its branch begins in the middle of the run; ",
            "set {field} to off, or {name[slg_scale]} to 0",
            {"cache": cache},
        )
    if request.nag_scale:
        return (
            "{field} {cache} and {name[nag_scale]} do not go together: there is one velocity for both prompts; ",
            "set {field} to off, or {name[nag_scale]} to 0",
            {"cache": cache},
        )
    if request.denoising_start > 0 or request.denoising_end < 1:
        return (
            "{field} {cache} does not know the steps of the other part of the run; ",
            "set {field} to off, or draw the run as a whole",
            {"cache": cache},
        )
    if isinstance(cache, TaylorSeer) and guidance_comes_on(request):
        return (
            "{field} {cache} cannot foresee a negative branch that begins behind the first step; ",
            "set {field} to off or first_block, or let guidance begin with the first step",
            {"cache": cache},
        )
    steps = max(request.steps_by_leg)  # a cache begins anew where latents of another size go on
    evaluations, _ = samplers.cost(request.sampler, steps)
    if isinstance(cache, TaylorSeer) and evaluations != steps:
        return (
            "{field} {cache} foresees evaluations at even distances, and {sampler} makes several in a step; ",
            "set {field} to off or first_block, or take a sampler with one evaluation per step",
            {"cache": cache, "sampler": request.sampler},
        )
    if cache.covers(evaluations):
        return (
            "{field} {cache}: its warm-up takes all {steps} steps and nothing is left out; ",
            "ask for more steps, lower warmup_steps, or set {field} to off",
            {"cache": cache, "steps": steps},
        )
    return None
