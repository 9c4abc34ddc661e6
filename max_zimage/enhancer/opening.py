"""An enhancer by its name, or the one that goes with a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from max_zimage.enhancer.address import AddressEnhancer
from max_zimage.enhancer.base import Enhancer
from max_zimage.enhancer.diffusion import DiffusionEnhancer
from max_zimage.enhancer.language_model import LanguageModelEnhancer, OwnModel
from max_zimage.enhancer.settings import EMBEDDED, ENCODER, EnhancerError, EnhancerSettings
from max_zimage.errors import CheckpointError

Wanted = Enhancer | EnhancerSettings | Mapping[str, Any] | str | None
"""An enhancer, what is said of one, or its model's name; None for the one that goes with the checkpoint."""


def settings_of(wanted: EnhancerSettings | Mapping[str, Any] | str | None) -> EnhancerSettings:
    """Settings, whichever way they are given.

    Raises:
        EnhancerError: If they are none, or out of range.
        TypeError: If this is something else.
    """
    if isinstance(wanted, EnhancerSettings):
        return wanted
    if wanted is None or isinstance(wanted, str):
        return EnhancerSettings(model=wanted)
    if isinstance(wanted, Mapping):
        return EnhancerSettings.of(wanted)
    raise TypeError(f"enhancer must be an Enhancer, EnhancerSettings or a name, got {type(wanted).__name__}")


def open_enhancer(wanted: Wanted, *, is_embedded: bool, own: OwnModel | None = None) -> Enhancer:
    """An enhancer that is checked, but not loaded; of a model by its name or folder the same one for the same settings.

    One that writes with the language model of a checkpoint is new each time, and kept by whoever has that: kept here,
    it would keep the text encoder of a pipeline that is gone.

    Args:
        wanted: It, or what is said of it.
        is_embedded: Whether pictures are drawn by the embedded model, with which the embedded enhancer goes.
        own: The language model of the checkpoint; None where no text encoder is at hand.

    Raises:
        EnhancerError: If there is no such enhancer, none goes with the checkpoint, or its files hold no whole one.
        TypeError: If `wanted` is something else.
    """
    if isinstance(wanted, Enhancer):
        return wanted
    settings = settings_of(wanted)
    if settings.model is None:
        settings = replace(settings, model=EMBEDDED if is_embedded else ENCODER)
    settings.check()
    if settings.model == ENCODER:
        return LanguageModelEnhancer(settings, _whole(own))
    # What an address is asked with may change; a model that was loaded stays.
    return AddressEnhancer(settings) if settings.is_address else _opened(settings)


@lru_cache(maxsize=1)
def _opened(settings: EnhancerSettings) -> DiffusionEnhancer:
    return DiffusionEnhancer(settings)


def forget() -> None:
    """Let go of the model that was opened last: what comes next may need its memory."""
    _opened.cache_clear()


def _whole(own: OwnModel | None) -> OwnModel:
    """The language model of the checkpoint.

    Raises:
        EnhancerError: If there is none.
    """
    reason: object = "no text encoder is loaded here"
    if own is not None:
        try:
            own.check()
        except CheckpointError as error:
            reason = error
        else:
            return own
    raise EnhancerError(
        f"this checkpoint is no enhancer of its own: {reason}; name a folder of DiffusionGemma or an http(s) address"
    )
