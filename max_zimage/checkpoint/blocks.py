"""How a transformer's weights fall into main layers, which are alike, and all others."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from max_zimage.checkpoint.plan import LoadPlan, ParameterRecipe
from max_zimage.device.dtypes import BYTES, ModelDtype
from max_zimage.device.plans import Streams
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.ops import PANEL

LAYERS = "layers."
"""What the graphs' names of the main layers' parameters begin with."""
_NORMS = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
_FLOAT32 = 4


def is_modulated_norm(name: str) -> bool:
    """Whether a parameter is one that the modulation holds where blocks are fused; see `modulated_norms`."""
    return any(name.endswith(f".{norm}.weight") for norm in _NORMS)


def streams_of(checked: LoadPlan, dtype: ModelDtype, spec: TransformerSpec) -> Streams:
    """How a transformer's weights fall into main layers and all others.

    Args:
        checked: What is loaded of it.
        dtype: It runs in.
        spec: Its shape.
    """
    layer = [each for each in checked.recipes if each.engine.startswith(f"{LAYERS}0.")]
    around = [each for each in checked.recipes if not each.engine.startswith(LAYERS)]

    def total(recipes: Iterable[ParameterRecipe]) -> int:
        return sum(_held(checked, each, dtype) for each in recipes)

    # Where blocks are fused, the norms of all of them are part of the modulation.
    norms = total(each for each in layer if is_modulated_norm(each.engine))
    made = [prod(each.shape) * (BYTES[dtype] if checked.codes(each) is None else _FLOAT32) for each in layer]
    return Streams(
        count=spec.num_layers,
        block=total(layer),
        around=total(around) + spec.num_layers * norms,
        passing=max(made),
    )


def _held(checked: LoadPlan, recipe: ParameterRecipe, dtype: ModelDtype) -> int:
    """Bytes of a parameter, where it is packed with those that fill the last panel."""
    nbytes, rows = checked.nbytes_of(recipe, dtype), recipe.shape[0]
    parts = {"panels": 1, "gated": 2}.get(recipe.packing or "", 0)
    panel = PANEL // parts if parts else 1
    filled = (parts or 1) * -(-(rows // (parts or 1)) // panel) * panel
    return nbytes * filled // rows
