"""How a transformer falls into blocks that can be streamed, and what cannot be drawn with them."""

from __future__ import annotations

from math import prod

from max_zimage.checkpoint.plan import LoadPlan
from max_zimage.components.streamed import LAYERS, is_modulated_norm
from max_zimage.device.dtypes import BYTES, ModelDtype
from max_zimage.device.plans import Streams
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache

_FLOAT32 = 4


def can_stream(cache: StepCache | None, nag_scale: float) -> bool:
    """Whether a request can be drawn with streamed blocks.

    First-block caching decides within one graph whether the other blocks run, and normalized attention guidance has
    blocks of its own.
    """
    return not isinstance(cache, FirstBlockCache) and not nag_scale


def streams_of(checked: LoadPlan, dtype: ModelDtype, spec: TransformerSpec) -> Streams:
    """How a transformer's weights fall into main layers and all others.

    Args:
        checked: What is loaded of it.
        dtype: It runs in.
        spec: Its shape.
    """
    layer = [each for each in checked.recipes if each.engine.startswith(f"{LAYERS}0.")]
    block = sum(checked.nbytes_of(each, dtype) for each in layer)
    # Where blocks are fused, the norms of all of them are part of the modulation.
    norms = sum(checked.nbytes_of(each, dtype) for each in layer if is_modulated_norm(each.engine))
    made = [prod(each.shape) * (BYTES[dtype] if checked.codes(each) is None else _FLOAT32) for each in layer]
    return Streams(
        count=spec.num_layers,
        block=block,
        around=checked.nbytes(dtype) - spec.num_layers * (block - norms),
        passing=max(made),
    )
