"""The part of MAX's contract that is about step caches, for callers with a loop of their own: state, and one step.

The pipeline's own loop goes by `max_zimage.pipeline.stepping`, where every branch of every picture decides for itself;
here the items of a call share one state, as MAX has it.

Reference: MAX pipelines/diffusion/interface.py and cache.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from max.driver import Buffer, Device
from max.dtype import DType
from max.pipelines.diffusion.cache import DenoisingCacheState

from max_zimage.device.devices import as_buffer, upload
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.request.checks import whole_number
from max_zimage.sampling.positions import padded
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache, TaylorSeer, configured

if TYPE_CHECKING:
    from max_zimage.pipeline.zimage import ZImagePipeline


@dataclass
class ZImageCacheState(DenoisingCacheState):
    """MAX's state with buffers in it, and what first-block caching has beyond it.

    Attributes:
        rest: What the blocks behind the first one added in the last full step, [items, image_tokens, dim].
    """

    rest: Buffer | None = None


class StepCaching:
    """Step caching of `ZImagePipeline` as MAX's flags configure it."""

    @property
    def configured_cache(self) -> StepCache | None:
        """What MAX's flags ask for."""
        pipeline = cast("ZImagePipeline", self)
        return configured(pipeline.cache_config, pipeline.default_residual_threshold)

    def use_step_cache(self, cache: StepCache | None) -> None:
        """Let requests that say nothing use a step cache, and compile what it runs."""
        pipeline = cast("ZImagePipeline", self)
        pipeline.sources = pipeline.sources.with_step_cache(cache)
        self.compile_step_cache(cache)

    def compile_step_cache(self, cache: StepCache | None) -> None:
        """Compile what a step cache runs now, rather than when a request first asks for it."""
        transformer = cast("ZImagePipeline", self).transformer
        if isinstance(cache, FirstBlockCache):
            transformer.first_block_graphs(cache.block)
        elif isinstance(cache, TaylorSeer):
            transformer.taylor_graphs  # noqa: B018  (compiled by being asked for)

    def create_cache_state(
        self, batch_size: int, seq_len: int, transformer_config: object, text_seq_len: int = 0
    ) -> ZImageCacheState:
        """Fresh state of the configured step cache, for one stream of steps.

        Args:
            batch_size: Items.
            seq_len: Image tokens, without padding.
            transformer_config: An object or a mapping with num_attention_heads, attention_head_dim, patch_size,
                in_channels and out_channels, or with Z-Image's own dim, in_channels and all_patch_size; None for the
                pipeline's own transformer.
            text_seq_len: Caption tokens of the longest caption, where the block that decides sees captions.

        Returns:
            Zeros, which resemble nothing, so that the first step computes; no tensors where caching is off.

        Raises:
            TypeError: If the configuration does not say how wide the transformer and its output are.
            RequestError: If a number is out of range.
        """
        pipeline, cache, state = cast("ZImagePipeline", self), self.configured_cache, ZImageCacheState()
        for name, value, low in (
            ("batch_size", batch_size, 1),
            ("seq_len", seq_len, 0),
            ("text_seq_len", text_seq_len, 0),
        ):
            whole_number(name, value, low=low, high=2**31 - 1)
        dim, patch_dim = _widths(pipeline.transformer.spec if transformer_config is None else transformer_config)

        def zeros(length: int, width: int, dtype: DType) -> Any:
            return Buffer.zeros((batch_size, length, width), dtype, pipeline.device)

        if isinstance(cache, FirstBlockCache):
            captions = padded(text_seq_len) if cache.block == "layers" else 0
            state.prev_residual = zeros(padded(seq_len) + captions, dim, pipeline.transformer.dtype)
            state.rest = zeros(seq_len, dim, pipeline.transformer.dtype)
            state.prev_output = zeros(seq_len, patch_dim, DType.float32)
        elif isinstance(cache, TaylorSeer):
            factors = [zeros(seq_len, patch_dim, DType.float32) for _ in range(3)]
            state.taylor_factor_0, state.taylor_factor_1, state.taylor_factor_2 = factors
        return state

    def run_transformer(self, cache_state: DenoisingCacheState, **kwargs: Any) -> tuple[Buffer, ...]:
        """Run the transformer for one step, under first-block caching as much of it as the first block asks for.

        Args:
            cache_state: From `create_cache_state`.
            **kwargs: `latents`, packed, and `arguments`, the rest of what `graphs.step.denoise.DenoiseStep` takes.

        Returns:
            One buffer, the velocity of every item, float32 [items, image tokens, 4 · channels]. With first-block
            caching the first block's change in the last full step comes before it.
        """
        pipeline, cache = cast("ZImagePipeline", self), self.configured_cache
        if set(kwargs) != {"latents", "arguments"}:
            raise TypeError(f"a step takes latents and arguments, got {', '.join(sorted(kwargs)) or 'neither'}")
        latents, arguments = as_buffer(kwargs["latents"]), kwargs["arguments"]
        if not isinstance(cache, FirstBlockCache):
            return (pipeline.transformer.model(latents, *arguments)[1],)
        state = cast(ZImageCacheState, cache_state)
        captions, image_rope, rope, valid_length, offsets, rows, _, _, modulation, final_scale = arguments[:10]
        threshold = upload(np.asarray([cache.threshold], np.float32), pipeline.device)
        velocity, change, state.rest, _ = pipeline.transformer.first_block_graphs(cache.block)[0](
            *(latents, rows, captions, image_rope, rope, valid_length, offsets, modulation, final_scale, threshold),
            *cast("tuple[Buffer, Buffer]", (state.prev_residual, state.rest)),
        )
        return change, velocity

    def run_denoising_step(self, step: int, cache_state: DenoisingCacheState, device: Device, **kwargs: Any) -> Buffer:
        """One step under the configured step cache.

        Args:
            step: Its number, from 0.
            cache_state: From `create_cache_state`.
            device: The pipeline's.
            **kwargs: As for `run_transformer`.

        Returns:
            The velocity of every item, computed, reused or extrapolated.
        """
        state, cache = cast(Any, cache_state), self.configured_cache
        if isinstance(cache, TaylorSeer) and not cache.computes(step + 1)[step]:
            return self._extrapolated(state, cache, step, device)
        *change, velocity = self.run_transformer(cache_state, **kwargs)
        if change:
            (state.prev_residual,), state.prev_output = change, velocity
        if isinstance(cache, TaylorSeer):
            gap = upload(cache.gaps(step + 1)[step:], device)
            known = state.taylor_factor_0, state.taylor_factor_1
            update = cast("ZImagePipeline", self).transformer.taylor_graphs[0]
            state.taylor_factor_1, state.taylor_factor_2 = update(velocity, *known, gap)
            state.taylor_factor_0, state.taylor_last_compute_step = velocity, step
        return velocity

    def _extrapolated(self, state: Any, cache: TaylorSeer, step: int, device: Device) -> Buffer:
        factors = state.taylor_factor_0, state.taylor_factor_1, state.taylor_factor_2
        rows = upload(np.arange(int(factors[0].shape[0]), dtype=np.int32), device)
        zero = upload(np.zeros(1, np.float32), device)
        coefficients = upload(cache.coefficients(step + 1)[step], device)
        predict = cast("ZImagePipeline", self).transformer.taylor_graphs[1]
        # Of the step that the graph takes, only its second output is wanted: the latents may be anything.
        return predict(factors[0], *factors, coefficients, rows, rows, zero, zero, zero)[1]


_MAX_NAMES = ("num_attention_heads", "attention_head_dim", "patch_size", "in_channels", "out_channels")
_OWN_NAMES = ("dim", "in_channels", "all_patch_size")


def _widths(config: object) -> tuple[int, int]:
    """The width of the transformer and of its output, per image token.

    Reference: MAX pipelines/diffusion/interface.py (create_cache_state) and z_image_modulev3/model_config.py.
    """
    if isinstance(config, TransformerSpec):
        return config.dim, config.patch_dim

    def found(names: tuple[str, ...]) -> list[Any] | None:
        values = config if isinstance(config, Mapping) else {name: getattr(config, name, ...) for name in names}
        held = [values.get(name, ...) for name in names]
        return None if ... in held else held

    if (values := found(_MAX_NAMES)) is not None:
        heads, head_dim, patch, in_channels, out_channels = values
        return heads * head_dim, patch * patch * (out_channels or in_channels)
    if (values := found(_OWN_NAMES)) is not None:
        dim, channels, patches = values
        return dim, patches[0] * patches[0] * channels
    raise TypeError(
        f"transformer_config must have {', '.join(_MAX_NAMES)}, or {', '.join(_OWN_NAMES)}, or be None, got "
        f"{type(config).__name__}"
    )
