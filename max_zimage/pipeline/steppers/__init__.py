"""Steppers: run one evaluation, in full or through a step cache, without host transfers; a file for each way."""

from __future__ import annotations

from max_zimage.components import ZImageTransformerModel
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.steppers.adapted import AdaptedStepper
from max_zimage.pipeline.steppers.base import Stepper
from max_zimage.pipeline.steppers.first_block import FirstBlockStepper
from max_zimage.pipeline.steppers.paired import PairedStepper
from max_zimage.pipeline.steppers.plain import PlainStepper
from max_zimage.pipeline.steppers.taylorseer import TaylorStepper
from max_zimage.pipeline.steppers.variant import VariantStepper
from max_zimage.sampling.step_cache import FirstBlockCache, TaylorSeer


def stepper_of(transformer: ZImageTransformerModel, inputs: ZImageModelInputs) -> Stepper:
    """The stepper that a batch asks for.

    Args:
        transformer: Runs the evaluations.
        inputs: The batch.

    Raises:
        ValueError: If the step cache cannot go with the batch's guidance.
    """
    plain = _by_cache(transformer, inputs)
    return plain if inputs.guidance.variant.is_plain else VariantStepper(plain, transformer, inputs)


def _by_cache(transformer: ZImageTransformerModel, inputs: ZImageModelInputs) -> Stepper:
    cache = inputs.step_cache
    # With a threshold of 0 every evaluation is computed, and the plain stepper computes all branch rows at once.
    nag = inputs.guidance.nag
    if inputs.mixed is not None and inputs.mixed.factors is not None:
        return AdaptedStepper(transformer, inputs.mixed.sets, inputs.mixed.factors)
    if cache is None or (isinstance(cache, FirstBlockCache) and cache.threshold == 0):
        return PlainStepper(transformer) if nag is None else PairedStepper(transformer, inputs.guidance, nag)
    if nag is not None:
        raise ValueError(
            "a step cache cannot go with normalized attention guidance, which has one velocity for two branches; leave "
            "one of the two out"
        )
    if inputs.guidance.others:
        raise ValueError(
            "a step cache cannot go with guidance that leaves out layers, whose branch begins in the middle of the "
            "steps; leave one of the two out"
        )
    if isinstance(cache, TaylorSeer):
        return TaylorStepper(transformer, inputs, cache)
    return FirstBlockStepper(transformer, inputs, cache)
