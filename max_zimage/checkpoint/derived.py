"""What a model's weights take, from its configuration alone: no file of weights is there, or looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.checkpoint.expand import ParameterTable, text_encoder_names, transformer_names, vae_names, weights
from max_zimage.checkpoint.plan import LoadPlan, ParameterRecipe, result_shape
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.linear import Storage
from max_zimage.graphs.model.text_encoder import HIDDEN_LAYER

QUANTIZED = ("text_encoder", "transformer")
"""Components whose matrices may be in fewer bits."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A way to keep weights.

    Attributes:
        name: What people call it.
        place: In memory on any device or on a CPU or a GPU, or in files that are decoded when they are loaded.
        dtype: Of what is not quantized.
        kept_as: How matrices are, in memory.
        matrix: Bytes of a weight of a matrix, in files; None where `dtype` or `kept_as` says it.
        row: Bytes beside each row of a matrix, in files. A scale or two for a whole matrix are left out.
    """

    name: str
    place: Literal["memory", "memory of a CPU", "memory of a GPU", "files"]
    dtype: ModelDtype = "bfloat16"
    kept_as: Storage | None = None
    matrix: float | None = None
    row: int = 0


STORED = (
    Stored(name="float32", place="memory", dtype="float32"),
    Stored(name="bfloat16", place="memory"),
    Stored(name="int8", place="memory of a CPU", kept_as="int8"),
    Stored(name="int8 (GPU)", place="memory of a GPU", kept_as="int8_rows"),
    Stored(name="q4", place="memory of a CPU", kept_as="q4"),
    Stored(name="Q8_0", place="files", matrix=34 / 32),
    Stored(name="mxfp8", place="files", matrix=1 + 1 / 32),
    Stored(name="int8 by row", place="files", matrix=1, row=4),
    Stored(name="fp8", place="files", matrix=1),
    Stored(name="Q6_K", place="files", matrix=210 / 256),
    Stored(name="Q5_K", place="files", matrix=176 / 256),
    Stored(name="Q5_0", place="files", matrix=22 / 32),
    Stored(name="Q4_K", place="files", matrix=144 / 256),
    Stored(name="Q4_0", place="files", matrix=18 / 32),
    Stored(name="nvfp4", place="files", matrix=1 / 2 + 1 / 16),
    Stored(name="nf4", place="files", matrix=1 / 2 + 4 / 64),
    Stored(name="Q3_K", place="files", matrix=110 / 256),
)
"""In memory, then in files, the largest first."""


def derived_plans(specs: ModelSpecs) -> dict[str, LoadPlan]:
    """Component -> what is loaded of it, of no files.

    Args:
        specs: Shapes of the model.
    """
    encoder = specs.text_encoder
    names = (
        text_encoder_names(encoder, encoder.layers_used(HIDDEN_LAYER)),
        transformer_names(specs.transformer),
        vae_names(specs.vae),
    )
    return {each.component: _plan(each) for each in names}


def stored_bytes(plans: Mapping[str, LoadPlan], stored: Stored) -> dict[str, int]:
    """Component -> bytes, of those that may be kept so.

    Args:
        plans: Of all components; of files, or derived.
        stored: How.
    """
    is_quantized = stored.kept_as is not None or stored.matrix is not None
    return {name: _bytes(plan, stored) for name, plan in plans.items() if not is_quantized or name in QUANTIZED}


def _bytes(plan: LoadPlan, stored: Stored) -> int:
    if stored.matrix is None:
        return replace(plan, kept_as=stored.kept_as).nbytes(stored.dtype)
    # The matrices of blocks, which are those that may be quantized in memory too.
    marked, plain = replace(plan, kept_as="int8"), replace(plan, kept_as=None)
    matrices = [each for each in plan.recipes if marked.codes(each) is not None]
    inside = sum(plain.nbytes_of(each, stored.dtype) for each in matrices)
    beside = stored.row * sum(each.shape[0] for each in matrices)
    return plain.nbytes(stored.dtype) - inside + round(inside / 2 * stored.matrix) + beside


def _plan(names: ParameterTable) -> LoadPlan:
    recipes = tuple(
        ParameterRecipe(
            engine=each.engine,
            parts=(),
            layout=each.layout,
            shape=result_shape(each.parts, each.layout),
            rotary_heads=each.rotary_heads,
            head_dim=each.head_dim,
            packing=each.packing,
        )
        for each in weights(names, "diffusers", "")
        if each.unused is None
    )
    return LoadPlan(names.component, names.namings["diffusers"], (), recipes, {})
