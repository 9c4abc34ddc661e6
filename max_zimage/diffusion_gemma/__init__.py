"""DiffusionGemma: text by block diffusion, as compiled graphs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from max_zimage.diffusion_gemma.text_diffusion import TextDiffusion, TextDraft, TextResult

__all__ = ["TextDiffusion", "TextDraft", "TextResult"]


def __getattr__(name: str) -> object:
    # It brings MAX along, which the numbers of a generation do without.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.text_diffusion"), name)
