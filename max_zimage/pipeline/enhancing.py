"""Prompts of a call written out before they are drawn, by an enhancer that is given or goes with the checkpoint."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from max_zimage import embedded
from max_zimage.components.text_encoder import NoTextEncoder
from max_zimage.enhancer.apply import applied, prompt_check
from max_zimage.enhancer.base import Enhancer
from max_zimage.enhancer.language_model import LanguageModelEnhancer, OwnModel
from max_zimage.enhancer.opening import Wanted, open_enhancer
from max_zimage.enhancer.settings import EnhancerError
from max_zimage.errors import RequestWarning
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.own_language import CheckpointLanguage
from max_zimage.pipeline.placing import device_of
from max_zimage.request.request import GenerationRequest

__all__ = ["EnhancerError", "Wanted", "enhanced", "is_embedded", "own_of_checked", "own_of_pipeline", "writer_of"]


def enhanced(pipeline: Any, request: GenerationRequest, enhancer: Wanted = None) -> GenerationRequest:
    """The request with its prompts written out, where it asks for that; a warning says which were not, and why.

    Args:
        pipeline: A `ZImagePipeline`, which draws it.
        request: The request.
        enhancer: Who writes; None for the pipeline's own, or the one that goes with its checkpoint.

    Raises:
        EnhancerError: If there is no such enhancer.
        TypeError: If one is given to a request that asks for none, or is something else.
    """
    if not request.enhance:
        if enhancer is not None:
            raise TypeError("enhancer does nothing without enhance=True; give that too, or leave it out")
        return request
    chosen = writer_of(pipeline, pipeline.enhancer if enhancer is None else enhancer)
    # Words do not depend on the adapters of the picture before.
    own = pipeline.adapters.using(()) if isinstance(chosen, LanguageModelEnhancer) else nullcontext()
    with own:
        done = applied(request, chosen, prompt_check(request, pipeline.tokenizer, pipeline.sources.limits))
    for note in done.notes:
        warnings.warn(RequestWarning(note), stacklevel=4)
    return done.request


def writer_of(pipeline: Any, wanted: Wanted) -> Enhancer:
    """An enhancer of a pipeline, which keeps the one that writes with its own text encoder.

    Args:
        pipeline: A `ZImagePipeline`.
        wanted: As somebody names it.

    Raises:
        EnhancerError: If there is no such enhancer.
        TypeError: If it is something else.
    """
    found = open_enhancer(wanted, is_embedded=is_embedded(pipeline.named[0]), own=pipeline.own_language)
    if found is wanted or not isinstance(found, LanguageModelEnhancer):
        return found
    kept: LanguageModelEnhancer | None = pipeline.own_writer
    if kept is None or kept.settings != found.settings:
        pipeline.own_writer = kept = found
    return kept


def own_of_pipeline(pipeline: Any) -> OwnModel | None:
    """The language model of a pipeline's checkpoint, with the text encoder that is loaded; None where none is."""
    if isinstance(pipeline.text_encoder, NoTextEncoder):
        return None
    return CheckpointLanguage(pipeline.sources, pipeline.tokenizer, pipeline.devices, pipeline.text_encoder)


def own_of_checked(checked: CheckedModel) -> OwnModel | None:
    """The same of a checkpoint of which nothing is loaded."""
    if "text_encoder" not in checked.sources.plans:
        return None
    return CheckpointLanguage(checked.sources, checked.tokenizer, [device_of(checked.wish.devices["text_encoder"])])


def is_embedded(model: str) -> bool:
    """Whether a name of a checkpoint is that of the embedded model, or its folder."""
    return model == embedded.NAME or (model != "" and Path(model).resolve() == embedded.PATH)
