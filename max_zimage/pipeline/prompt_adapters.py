"""Adapters (LoRA) of a call by prompt: `loras` that are a list for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from types import NoneType
from typing import Any

import numpy as np

from max_zimage.errors import Problem, RequestError
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.bound_adapters import checked_loras
from max_zimage.pipeline.carried import Carried
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.mixed_adapters import LoraSet, mixed_of, why_apart
from max_zimage.pipeline.parts import Parts
from max_zimage.request.request import GenerationRequest


def sets_of_call(given: object, sources: CheckpointManifest) -> tuple[LoraSet, ...] | None:
    """The adapters of each prompt, where `loras` of a call is a list of lists; None where it is not.

    Args:
        given: As `loras` of a call. A list of a file and a number is a file with its scale.
        sources: The checkpoint.

    Raises:
        RequestError: If a file is not there or a scale is no number; all that is wrong is said together.
        AdapterError: If one does not fit.
    """
    if not isinstance(given, (list, tuple)) or not given or not all(map(_is_set, given)):
        return None
    sets: list[LoraSet] = []
    problems: list[Problem] = []
    for index, each in enumerate(given):
        try:
            sets.append(checked_loras(each, sources, f"loras[{index}]"))
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(*problems)
    return tuple(sets)


class PromptAdapters:
    """The adapters of each prompt of a call; nothing is done where there are none, or all have the same.

    Args:
        parts: The components, and the checkpoint.
        request: The call's.
        sets: Of each prompt; None where the request says what all have.

    Attributes:
        request: The request, with the adapters in it where all prompts have the same.

    Raises:
        RequestError: If there are more or fewer than prompts, or these cannot be drawn together.
    """

    def __init__(self, parts: Parts, request: GenerationRequest, sets: Sequence[LoraSet] | None) -> None:
        self._transformer, self._specs, self.request = parts.transformer, parts.sources.specs, request
        self._loras: tuple[LoraSet, ...] = ()
        if sets is None:
            return
        if len(sets) != request.num_prompts:
            message = "{field} has a list for each of {given} prompts, and there are {prompts}; give as many"
            raise RequestError.of("loras", message, given=len(sets), prompts=request.num_prompts)
        if len({*sets}) == 1:  # in the weights they cost a step nothing
            self.request = replace(request, loras=sets[0])
            return
        for each in sets:
            if reason := why_apart(request, each, self._specs, self._transformer):
                message = "{field}: prompts cannot be drawn together under adapters of their own: {reason}; draw them "
                raise RequestError.of("loras", message + "one by one", reason=reason)
        self._loras = tuple(each for each in sets for _ in range(request.num_images_per_prompt))

    def added_to(self, inputs: ZImageModelInputs) -> ZImageModelInputs:
        """The batch, with the adapters of each picture.

        Raises:
            NotApplied: If a file is gone, or is another one than when the call was made.
        """
        if not self._loras:
            return inputs
        return replace(inputs, mixed=mixed_of(self._loras, self._specs, self._transformer))

    def told_by(self, carried: Carried) -> Carried:
        """What the pictures' files say, each with its own."""
        return replace(carried, loras=self._loras)


def _is_set(given: Any) -> bool:
    """Whether this is a list of adapters, and not one that is written as a file and a scale."""
    if not isinstance(given, list):
        return False
    # A number, numpy's too, or what stands where one belongs; that is told of as a scale.
    return not (len(given) == 2 and isinstance(given[1], (Real, np.bool_, NoneType)))
