"""Everything that draws for the quality table, ready to be timed: the engine, diffusers with its hooks, cache-dit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import diffusers
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.quality.cases import Case, Prompt
from max_zimage import ZImagePipeline
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache, TaylorSeer, format_step_cache
from tests.references import diffusers_caches
from tests.references.engine_runs import inputs_of
from tests.references.noises import initial_noise

UNCACHED = "uncached"
"""The variant that all others of its group are compared with."""

_HOOKS_NOTE = "not supported for Z-Image out of the box: cache context set by hand"
NOTES = {
    str(FirstBlockCache()): "default",
    str(TaylorSeer()): "default",
    "FirstBlockCacheConfig": f"{_HOOKS_NOTE}, and the hook, which asks for an argument named hidden_states, told of x",
    "TaylorSeerCacheConfig": f"{_HOOKS_NOTE}, hooked to the final layer alone",
}
"""By variant, or by what is in front of its bracket."""

PEER_THRESHOLDS = (0.06, 0.15)
PEER_INTERVALS = (3, 5)
DBCACHE_THRESHOLDS = (0.08, 0.2)
"""The first one is cache-dit's default."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One picture.

    Attributes:
        pixels: uint8 [height, width, 3].
        seconds: From the prompt on.
        skipped: Share of the transformer's evaluations that were left out, all branches together.
    """

    pixels: npt.NDArray[np.uint8]
    seconds: float
    skipped: float


Draw = Callable[[Prompt], Drawn]
Group = Mapping[str, Draw]
"""By variant, `UNCACHED` first."""


def engine_group(pipeline: ZImagePipeline, case: Case) -> Group:
    """The engine under every step cache of a case."""
    variants: dict[str, StepCache | None] = {UNCACHED: None, **{str(cache): cache for cache in case.caches}}
    return {name: partial(_draw_with_engine, pipeline, case, cache) for name, cache in variants.items()}


def _draw_with_engine(pipeline: ZImagePipeline, case: Case, cache: StepCache | None, prompt: Prompt) -> Drawn:
    begin = time.perf_counter()
    request = GenerationRequest.create(
        limits=pipeline.sources.limits,
        defaults=pipeline.sources.defaults,
        prompt=prompt.text,
        seed=prompt.seed,
        height=case.height,
        width=case.width,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        step_cache=format_step_cache(cache),
    )
    output = pipeline.execute(inputs_of(pipeline, request), "np", None)
    seconds = time.perf_counter() - begin
    return Drawn(pixels=np.asarray(output.images)[0], seconds=seconds, skipped=1 - float(output.computed.mean()))


def diffusers_group(reference: diffusers.ZImagePipeline, case: Case) -> Group:
    """Diffusers as it is, with its hooks, and with cache-dit."""
    transformer = reference.transformer
    ways: dict[str, Callable[[], AbstractContextManager[list[int]]]] = {
        UNCACHED: partial(diffusers_caches.counted, transformer)
    }
    for threshold in PEER_THRESHOLDS:
        apply = diffusers_caches.first_block(threshold)
        ways[f"FirstBlockCacheConfig(threshold={threshold})"] = partial(_first_block, transformer, apply)
    for interval in PEER_INTERVALS:
        apply = diffusers_caches.taylorseer(interval, case.warmup, 1)
        settings = f"cache_interval={interval}, disable_cache_before_step={case.warmup}, max_order=1"
        ways[f"TaylorSeerCacheConfig({settings})"] = partial(diffusers_caches.hooked, transformer, apply)
    for threshold in DBCACHE_THRESHOLDS:
        settings = f"Fn=1, Bn=0, residual_diff_threshold={threshold}, max_warmup_steps={case.warmup}"
        ways[f"cache-dit DBCacheConfig({settings})"] = partial(
            diffusers_caches.dbcache, reference, threshold, case.warmup
        )
    return {name: partial(_draw_with_diffusers, reference, case, way) for name, way in ways.items()}


@contextmanager
def _first_block(transformer: diffusers.ZImageTransformer2DModel, apply: diffusers_caches.Apply) -> Iterator[list[int]]:
    with diffusers_caches.readable_blocks(), diffusers_caches.hooked(transformer, apply) as runs:
        yield runs


def _draw_with_diffusers(
    reference: diffusers.ZImagePipeline,
    case: Case,
    way: Callable[[], AbstractContextManager[list[int]]],
    prompt: Prompt,
) -> Drawn:
    """Both branches are one batch to diffusers: a main block that runs once a step leaves out nothing."""
    channels = reference.transformer.config.in_channels
    noise = torch.from_numpy(initial_noise(prompt.seed, 1, channels, case.height, case.width))
    with way() as runs:
        begin = time.perf_counter()
        (image,) = reference(
            prompt.text,
            latents=noise,
            height=case.height,
            width=case.width,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
        ).images
        seconds = time.perf_counter() - begin
    return Drawn(pixels=np.asarray(image), seconds=seconds, skipped=1 - len(runs) / case.steps)


def note_of(variant: str) -> str:
    """What else is to be said of a variant."""
    return NOTES.get(variant) or NOTES.get(variant.partition("(")[0], "")
