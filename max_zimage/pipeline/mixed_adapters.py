"""Pictures of one batch that have adapters (LoRA) of their own, beside weights that have none.

Where all have the same they are added to the weights, which costs a step nothing; see `bound_adapters`. Where they
differ, adding and taking away in turn may take longer than the pictures: then each branch row has low-rank products of
its own beside the matrices, if its adapters are of that kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from max.driver import Buffer

from max_zimage.checkpoint.adapters.factors import factors_of, why_not
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.components import ZImageTransformerModel
from max_zimage.graphs.model.adapted import Factors
from max_zimage.pipeline.bound_adapters import NotApplied, opened
from max_zimage.request.loras import Lora
from max_zimage.request.request import GenerationRequest

LoraSet = tuple[Lora, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedAdapters:
    """The adapters of a batch's pictures.

    Attributes:
        loras: Of each picture.
        slots: Which of the sets in `factors` each picture has.
        factors: Low-rank parts of every distinct set.
    """

    loras: tuple[LoraSet, ...]
    slots: tuple[int, ...]
    factors: Factors[Buffer]


def mixed_of(loras: Sequence[LoraSet], specs: ModelSpecs, transformer: ZImageTransformerModel) -> MixedAdapters:
    """Read the adapters of pictures.

    Args:
        loras: Of each picture; `why_apart` has nothing against any.
        specs: Of the checkpoint.
        transformer: Will run the steps.

    Raises:
        NotApplied: If a file is gone, or is another one than when the request was made.
    """
    sets = list(dict.fromkeys(loras))
    try:
        adapters = [[(opened(each, specs), each.scale) for each in one] for one in sets]
        factors = factors_of(adapters, specs.transformer, transformer.dtype_name)
    except ValueError as error:
        names = ", ".join(dict.fromkeys(each.name for one in sets for each in one))
        raise NotApplied(f"adapters {names}: {error}") from error
    return MixedAdapters(loras=tuple(loras), slots=tuple(map(sets.index, loras)), factors=factors)


def why_apart(
    request: GenerationRequest, loras: LoraSet, specs: ModelSpecs, transformer: ZImageTransformerModel
) -> str | None:
    """Why a request's pictures cannot share steps with others under other adapters; None if they can.

    Args:
        request: How they are drawn.
        loras: Their adapters.
        specs: Of the checkpoint.
        transformer: Would run the steps.

    Raises:
        AdapterError: If an adapter cannot be opened.
    """
    if not transformer.mixes_adapters:
        return "the transformer is on an accelerator, quantized or streamed"
    if request.step_cache is not None:
        return "a step cache is asked for"
    if request.nag_scale:
        return "normalized attention guidance is asked for"
    if request.passes or request.progressive:
        return "passes are asked for"
    reasons = ((each.name, why_not(opened(each, specs))) for each in loras)
    return next((f"{name} {reason}" for name, reason in reasons if reason), None)
