"""Step caches of other people's code on diffusers' Z-Image: diffusers' own hooks, and cache-dit.

Neither the pipeline nor the transformer of diffusers 0.42 supports its hooks: nobody sets a cache context, so one is
set here by hand, and the first-block hook asks a block for an argument named hidden_states, which Z-Image's calls x.
Both branches of guidance are one batch to them, and are computed or left out together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from diffusers import ZImagePipeline as DiffusersPipeline
from diffusers import ZImageTransformer2DModel, hooks
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

Apply = Callable[[ZImageTransformer2DModel], None]
"""Puts hooks on a transformer."""


def first_block(threshold: float) -> Apply:
    """First-block caching; works inside `readable_blocks`."""
    config = hooks.FirstBlockCacheConfig(threshold=threshold)
    return lambda transformer: hooks.apply_first_block_cache(transformer, config)


def taylorseer(interval: int, warmup: int, order: int) -> Apply:
    """TaylorSeer of the final layer's output, which is the prediction, with all blocks left out in between."""
    config = hooks.TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=warmup,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"all_final_layer\.2-1"],
        skip_predict_identifiers=[r"layers\.\d+", r"(noise|context)_refiner\.\d+"],
    )
    return lambda transformer: hooks.apply_taylorseer_cache(transformer, config)


@contextmanager
def counted(transformer: ZImageTransformer2DModel) -> Iterator[list[int]]:
    """A list that grows by one whenever the second main block runs."""
    runs: list[int] = []
    inside = transformer.layers[1].attention.register_forward_hook(lambda *_: runs.append(1))
    try:
        yield runs
    finally:
        inside.remove()


@contextmanager
def hooked(transformer: ZImageTransformer2DModel, apply: Apply) -> Iterator[list[int]]:
    """Diffusers' hooks on a transformer, with fresh state; yields what `counted` does."""
    with counted(transformer) as runs:
        try:
            apply(transformer)
            # It remembers which modules had hooks the last time.
            HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
            _set_cache_context(transformer, CacheContext(name="both branches"))
            yield runs
        finally:
            for module in transformer.modules():
                registry = getattr(module, "_diffusers_hook", None)
                if registry is not None:
                    for name in list(registry.hooks):
                        registry.remove_hook(name, recurse=False)


@contextmanager
def readable_blocks() -> Iterator[None]:
    """Let diffusers' first-block hook take the first argument for the hidden states, whatever its name is."""
    metadata = TransformerBlockRegistry.get(ZImageTransformerBlock)
    with patch.object(metadata, "_get_parameter_from_args_kwargs", lambda name, given, named: given[0]):
        yield


@contextmanager
def dbcache(pipeline: DiffusersPipeline, threshold: float, warmup: int) -> Iterator[list[int]]:
    """DBCache of cache-dit as it comes, deciding by the first main block; yields what `counted` does.

    It replaces the `__call__` of the pipeline's class while it is on, so no other pipeline may draw meanwhile.
    """
    import cache_dit  # here, for it brings half of its optional parts along

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=warmup
    )
    with counted(pipeline.transformer) as runs:
        cache_dit.enable_cache(pipeline, cache_config=config)
        try:
            yield runs
        finally:
            cache_dit.disable_cache(pipeline)
