"""Step caches once more, in numpy, around the reference's transformer: which steps are computed, and what comes out.

Every step runs the whole reference, item by item; what an algorithm would not have computed is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from max_zimage.sampling.guidance import Variant
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache
from tests.references.diffusers_runs import Call, FloatArray, Pair, noise, packed, reference_features
from tests.references.engine_runs import inputs_of, request_of
from tests.references.sampler_walk import SEED, SamplerWalk
from tests.sampling.guiders import NumpyGuide

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One item's way through the reference.

    Attributes:
        change: What the first block added, [tokens, dim].
        head: The first block's output, image tokens alone.
        hidden: The last block's output, image tokens alone.
        project: Hidden to velocity, packed.
    """

    change: FloatArray
    head: FloatArray
    hidden: FloatArray
    project: Callable[[FloatArray], FloatArray]


Step = Callable[[int, int, Evaluation], tuple[FloatArray, bool]]
"""Of step, item and evaluation: the velocity that the algorithm uses, and whether it computed it."""


def run(
    pair: Pair,
    call: Call,
    step: Step,
    block: str = "noise_refiner",
    sampler: str = "euler",
    *,
    variant: Variant | None = None,
) -> tuple[FloatArray, Flags]:
    """Draw a call under an algorithm.

    Args:
        pair: Whose reference runs, and whose schedule is used.
        call: The request; without image-to-image.
        step: The algorithm.
        block: The list whose first block is looked at.
        sampler: Makes steps of evaluations.
        variant: Of guidance; plain if not given.

    Returns:
        Packed latents after each evaluation, float32 [evaluations, pictures, image_tokens, patch_dim], and
        bool [evaluations, items].
    """
    inputs = inputs_of(pair.ours, replace(request_of(pair, call), sampler=sampler, seed=SEED))
    branches = [[item for item in branch for _ in range(call.copies)] for branch in reference_features(pair, call)]
    latents, pictures = packed(noise(pair, call)), len(branches[0])
    history, flags = [], np.zeros((len(inputs.guidance.negative), pictures * (2 if call.guidance else 1)), np.bool_)
    side = (call.height // 8, call.width // 8)
    guides = [NumpyGuide(variant or Variant()) for _ in range(pictures)]
    walk = SamplerWalk(inputs.evaluations, call, latents)
    for index, (time, scale) in enumerate(zip(inputs.evaluations.timesteps, inputs.guidance.negative, strict=True)):
        velocity = np.zeros((2, *latents.shape), np.float32)
        for branch, features in enumerate(branches if scale else branches[:1]):
            for picture, caption in enumerate(features):
                item = branch * pictures + picture
                seen = evaluate(pair, unpacked(latents[picture], *side), float(time), caption, block)
                velocity[branch, picture], flags[index, item] = step(index, item, seen)
        guided = [guide(velocity[0, at], velocity[1, at], float(scale), 0.0, index) for at, guide in enumerate(guides)]
        latents = walk.update(index, latents, np.stack(guided).astype(np.float32))
        history.append(latents)
    return np.stack(history), flags


def algorithm(cache: StepCache) -> Step:
    """A cache as numpy has it."""
    if isinstance(cache, FirstBlockCache):
        return first_block(cache.threshold, cache.warmup_steps)
    return taylorseer(cache.cache_interval, cache.warmup_steps, cache.max_order)


def first_block(threshold: float, warmup_steps: int = 0) -> Step:
    """First-block caching as its authors describe it, one state an item."""
    states: dict[int, tuple[FloatArray, FloatArray]] = {}

    def step(index: int, item: int, seen: Evaluation) -> tuple[FloatArray, bool]:
        if item in states and index >= warmup_steps:
            change, rest = states[item]
            if np.abs(seen.change - change).mean() / np.abs(change).mean() < threshold:
                return seen.project(seen.head + rest), False
        states[item] = (seen.change, seen.hidden - seen.head)
        return seen.project(seen.hidden), True

    return step


def taylorseer(interval: int, warmup_steps: int, order: int) -> Step:
    """TaylorSeer with as many differences as are known, up to an order; one state an item."""
    known: dict[int, list[FloatArray]] = {}
    last: dict[int, int] = {}

    def step(index: int, item: int, seen: Evaluation) -> tuple[FloatArray, bool]:
        if index >= warmup_steps and (index - warmup_steps - 1) % interval:
            offset = index - last[item]
            factorials = (1, 1, 2)
            terms = [factor * (offset**power / factorials[power]) for power, factor in enumerate(known[item])]
            return np.asarray(sum(terms), np.float32), False
        terms = [seen.project(seen.hidden)]
        for before in known.get(item, [])[:order]:
            terms.append((terms[-1] - before) / (index - last[item]))
        known[item], last[item] = terms, index
        return terms[0], True

    return step


@torch.no_grad()
def evaluate(pair: Pair, latents: FloatArray, time: float, caption: torch.Tensor, block: str) -> Evaluation:
    """Run the reference for one item and keep what the algorithms look at."""
    transformer: Any = pair.theirs.transformer
    (final,) = transformer.all_final_layer.values()
    places = {"first": getattr(transformer, block)[0], "last": transformer.layers[-1], "final": final}
    with _watched(places) as seen:
        transformer([torch.from_numpy(latents).unsqueeze(1)], torch.tensor([time]), [caption], return_dict=False)
    image_tokens = latents.shape[1] * latents.shape[2] // 4
    (before, *_), _, after = seen["first"]
    (_, *given), named, _ = seen["final"]

    def project(hidden: FloatArray) -> FloatArray:
        with torch.no_grad():
            return np.asarray(final(torch.from_numpy(hidden).unsqueeze(0), *given, **named)[0])

    return Evaluation(
        change=(after - before)[0].numpy(),
        head=after[0, :image_tokens].numpy(),
        hidden=seen["last"][2][0, :image_tokens].numpy(),
        project=project,
    )


@contextmanager
def _watched(places: dict[str, torch.nn.Module]) -> Iterator[dict[str, Any]]:
    """Positional arguments, named arguments and result of the last call of some modules."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, named, result: seen.__setitem__(name, (given, named, result))

    hooks = [place.register_forward_hook(keep(name), with_kwargs=True) for name, place in places.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def unpacked(tokens: FloatArray, height: int, width: int) -> FloatArray:
    """Image tokens of one picture as the reference takes them, [channels, height, width]."""
    squares = tokens.reshape(height // 2, width // 2, 2, 2, -1).transpose(4, 0, 2, 1, 3)
    return np.ascontiguousarray(squares).reshape(-1, height, width)
