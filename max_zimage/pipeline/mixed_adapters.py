"""Pictures of one batch that have adapters (LoRA) of their own, beside weights that have none.

Where all have the same they are added to the weights, which costs a step nothing; see `bound_adapters`. Where they
differ, adding and taking away in turn may take longer than the pictures: then each branch row has low-rank products of
its own beside the matrices, if its adapters are of that kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum

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
        sets: Which of the sets in `factors` each picture has; -1 for none, which the weights alone draw.
        factors: Low-rank parts of every distinct set that changes anything; None where none does.
    """

    loras: tuple[LoraSet, ...]
    sets: tuple[int, ...]
    factors: Factors[Buffer] | None


def effective(loras: LoraSet) -> LoraSet:
    """What a set comes to, whatever its order: a file that is named twice once, none whose scales are 0 together."""
    by_digest = {each.digest: each for each in loras}
    scales = {name: fsum(each.scale for each in loras if each.digest == name) for name in sorted(by_digest)}
    return tuple(replace(by_digest[name], scale=scale) for name, scale in scales.items() if scale)


def mixed_of(loras: Sequence[LoraSet], specs: ModelSpecs, transformer: ZImageTransformerModel) -> MixedAdapters:
    """Read the adapters of pictures.

    Args:
        loras: Of each picture; `why_apart` has nothing against them.
        specs: Of the checkpoint.
        transformer: Will run the steps.

    Raises:
        NotApplied: If a file is gone, or is another one than when the request was made, or if memory does not suffice.
    """
    changing = [effective(each) for each in loras]
    distinct = [each for each in dict.fromkeys(changing) if each]
    try:
        adapters = [[(opened(each, specs), each.scale) for each in one] for one in distinct]
        factors = factors_of(adapters, specs.transformer, transformer.dtype_name) if adapters else None
    except ValueError as error:
        names = ", ".join(dict.fromkeys(each.name for one in distinct for each in one))
        raise NotApplied(f"adapters {names}: {error}") from error
    sets = tuple(distinct.index(each) if each else -1 for each in changing)
    return MixedAdapters(loras=tuple(loras), sets=sets, factors=factors)


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
        return "there is a step cache"
    if request.nag_scale:
        return "normalized attention guidance is asked for"
    if request.passes or request.progressive:
        return "passes are asked for"
    return why_not([opened(each, specs) for each in effective(loras)])
