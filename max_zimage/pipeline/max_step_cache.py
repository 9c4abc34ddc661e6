"""MAX's optional step-cache methods, for callers that drive the denoising loop themselves: state, and one step.

The pipeline's own loop goes by `max_zimage.pipeline.steppers`, where every branch of every picture decides for itself;
here the rows of a call share one state, as MAX has it.

Reference: MAX pipelines/diffusion/interface.py and cache.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from max.driver import Buffer, Device
from max.dtype import DType
from max.pipelines.diffusion.cache import DenoisingCacheState

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import upload
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.extrapolate import ExtrapolateInputs
from max_zimage.pipeline.parts import Parts
from max_zimage.pipeline.step_inputs import StepInputs
from max_zimage.request.checks import whole_number
from max_zimage.sampling.positions import padded
from max_zimage.sampling.step_cache import FirstBlockCache, TaylorSeer


@dataclass
class ZImageCacheState(DenoisingCacheState):
    """MAX's state with buffers in it, and what first-block caching has beyond it.

    Attributes:
        tail_residual: What the blocks behind the first one added in the last full step, [items, image_tokens, dim].
    """

    tail_residual: Buffer | None = None


def create_cache_state(
    self: Parts, batch_size: int, seq_len: int, transformer_config: object, text_seq_len: int = 0
) -> ZImageCacheState:
    """Fresh state of the configured step cache, for one stream of steps.

    Args:
        self: The pipeline.
        batch_size: Branch rows.
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
    transformer, cache, state = self.transformer, self.configured_cache, ZImageCacheState()
    for name, value, low in (("batch_size", batch_size, 1), ("seq_len", seq_len, 0), ("text_seq_len", text_seq_len, 0)):
        whole_number(name, value, low=low, high=2**31 - 1)
    dim, patch_dim = _widths(transformer.spec if transformer_config is None else transformer_config)

    def zeros(length: int, width: int, dtype: DType) -> Any:
        return Buffer.zeros((batch_size, length, width), dtype, transformer.device)

    if isinstance(cache, FirstBlockCache):
        captions = padded(text_seq_len) if cache.block == "layers" else 0
        state.prev_residual = zeros(padded(seq_len) + captions, dim, transformer.dtype)
        state.tail_residual = zeros(seq_len, dim, transformer.dtype)
        state.prev_output = zeros(seq_len, patch_dim, DType.float32)
    elif isinstance(cache, TaylorSeer):
        factors = [zeros(seq_len, patch_dim, DType.float32) for _ in range(3)]
        state.taylor_factor_0, state.taylor_factor_1, state.taylor_factor_2 = factors
    return state


def run_transformer(self: Parts, cache_state: DenoisingCacheState, **kwargs: Any) -> tuple[Buffer, ...]:
    """Run the transformer for one step, under first-block caching as much of it as the first block asks for.

    Args:
        self: The pipeline.
        cache_state: From `create_cache_state`.
        **kwargs: `inputs`, the step's `StepInputs`, with packed latents in it.

    Returns:
        One buffer, the velocity of every branch row, float32 [items, image tokens, 4 · channels]. With first-block
        caching the first block's residual in the last full step comes before it.
    """
    transformer, cache, inputs = self.transformer, self.configured_cache, _inputs(kwargs)
    if not isinstance(cache, FirstBlockCache):
        return (transformer.step(*inputs.arguments)[3],)
    state = cast(ZImageCacheState, cache_state)
    threshold = upload(np.asarray([cache.threshold], np.float32), transformer.device)
    known = cast("tuple[Buffer, Buffer]", (state.prev_residual, state.tail_residual))
    step = transformer.first_block_graphs(cache.block)[0]
    velocity, first_residual, state.tail_residual, _ = step(*inputs.predict, threshold, *known)
    return first_residual, velocity


def run_denoising_step(
    self: Parts, step: int, cache_state: DenoisingCacheState, device: Device, **kwargs: Any
) -> Buffer:
    """One step under the configured step cache.

    Args:
        self: The pipeline.
        step: Its number, from 0.
        cache_state: From `create_cache_state`.
        device: The pipeline's.
        **kwargs: As for `run_transformer`.

    Returns:
        The velocity of every branch row, computed, reused or extrapolated.
    """
    state: Any = cache_state
    transformer, cache = self.transformer, self.configured_cache
    if isinstance(cache, TaylorSeer) and not cache.computes(step + 1)[step]:
        return _extrapolated(transformer, cache, step, state, _inputs(kwargs), device)
    *residual, velocity = run_transformer(self, cache_state, **kwargs)
    if residual:
        (state.prev_residual,), state.prev_output = residual, velocity
    if isinstance(cache, TaylorSeer):
        gap = upload(cache.gaps(step + 1)[step:], device)
        known = state.taylor_factor_0, state.taylor_factor_1
        state.taylor_factor_1, state.taylor_factor_2 = transformer.taylor_graphs[0](velocity, *known, gap)
        state.taylor_factor_0, state.taylor_last_compute_step = velocity, step
    return velocity


def _inputs(kwargs: Mapping[str, Any]) -> StepInputs:
    inputs = kwargs.get("inputs")
    if set(kwargs) != {"inputs"} or not isinstance(inputs, StepInputs):
        raise TypeError(f"a step takes inputs, the step's StepInputs, got {', '.join(sorted(kwargs)) or 'nothing'}")
    return inputs


def _extrapolated(
    transformer: ZImageTransformerModel, cache: TaylorSeer, step: int, state: Any, inputs: StepInputs, device: Device
) -> Buffer:
    coefficients = upload(cache.coefficients(step + 1)[step], device)
    factors = state.taylor_factor_0, state.taylor_factor_1, state.taylor_factor_2
    taken = ExtrapolateInputs(inputs.predict.latents, *factors, coefficients)
    return transformer.taylor_graphs[1](*taken, *inputs.branches, *inputs.guide, *inputs.advance)[3]


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
