"""llm-dit's spellings of what a call does: thin aliases, for code that was written for it.

Reference: reference/api.md, "The Python a person writes"; reference/generation.md section 5 for defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TWO_PASSES: tuple[Mapping[str, Any], ...] = (
    {"scale": 0.5, "steps": 9},
    {"scale": 1.0, "steps": 9, "strength": 0.5},
)
"""Passes where none are named."""


def img2img(self: Any, prompt: str | Sequence[str], image: Any, strength: float = 0.75, **more: Any) -> Any:
    """Begin with a picture: the call with `image` and `strength`; its other arguments, result and errors hold.

    Args:
        self: The pipeline.
        prompt: One, or several.
        image: A PIL image, or uint8 [rows, columns, 3].
        strength: How far to go from it, in (0, 1].
        **more: Other arguments of the call.
    """
    return self(prompt, image=image, strength=strength, **more)


def generate_multipass(
    self: Any,
    prompt: str | Sequence[str],
    final_width: int = 2048,
    final_height: int = 2048,
    passes: Sequence[Mapping[str, Any]] | str | None = None,
    **more: Any,
) -> Any:
    """Draw in several passes: the call with `passes`; its other arguments, result and errors hold.

    Args:
        self: The pipeline.
        prompt: One, or several.
        final_width: Pixels of the last pass, a multiple of 16.
        final_height: Likewise.
        passes: As `passes` of the call; `TWO_PASSES` if not given.
        **more: Other arguments of the call.
    """
    wanted = TWO_PASSES if passes is None else passes
    return self(prompt, width=final_width, height=final_height, passes=wanted, **more)
