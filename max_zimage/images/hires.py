"""Two passes as stable-diffusion-webui has them: a picture in a small size, then drawn on in the one that is wanted.

Reference: stable-diffusion-webui modules/processing.py, StableDiffusionProcessingTxt2Img.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from max_zimage.sampling.other_names import UPSCALER_LABELS

_TOKEN_SIDE = 16
_NUMBER = r"(\d{1,6}(?:\.\d{1,20})?(?:e-\d\d)?)"
_PASS = re.compile(rf"{_NUMBER}x(\d{{1,9}})(?::{_NUMBER})?(?::.*)?", re.ASCII)


@dataclass(frozen=True)
class Hires:
    """The second pass, which other tools call Hires. fix.

    Attributes:
        steps: Of the first pass.
        size: Width and height of its picture, in pixels.
        second_steps: Of the second one.
        strength: How far that goes from the picture of the first one.
        upscaler: What enlarges that, by the name that other tools have for it.
        whole: Width and height of the picture, in pixels.
    """

    steps: int
    size: tuple[int, int]
    second_steps: int
    strength: float
    upscaler: str
    whole: tuple[int, int]

    def pairs(self) -> dict[str, str]:
        """What other tools write of it. Both sides grow alike, or the size says what they grow to."""
        (wide, high), (width, height) = self.size, self.whole
        is_even = wide * height == high * width
        larger = {"Hires upscale": f"{width / wide:.10g}"} if is_even else {"Hires resize": f"{width}x{height}"}
        return larger | {"Hires steps": str(self.second_steps), "Hires upscaler": self.upscaler}


def first_steps(values: Mapping[str, Any]) -> int:
    """Steps of a picture, or of its first pass; arguments as of `hires_of`."""
    found = _PASS.fullmatch((values["passes"] or "").partition(",")[0])
    return int(found[2]) if found else int(values["num_inference_steps"])


def hires_of(values: Mapping[str, Any]) -> Hires | None:
    """The second pass of a picture; None where it had one pass or more than two, or began with an image.

    Args:
        values: As the JSON of `max_zimage.request.metadata.GenerationParameters` has them.
    """
    found = [_PASS.fullmatch(word) for word in (values["passes"] or "").split(",")]
    if len(found) != 2 or found[0] is None or found[1] is None or values["strength"] is not None:
        return None
    whole = (int(values["width"]), int(values["height"]))
    wide, high = (int(Fraction(found[0][1]) * side) // _TOKEN_SIDE * _TOKEN_SIDE for side in whole)
    if not wide or not high or Fraction(found[1][1]) != 1 or found[1][3] is None:
        return None
    upscaler = UPSCALER_LABELS[values["upscale"]]
    return Hires(int(found[0][2]), (wide, high), int(found[1][2]), float(found[1][3]), upscaler, whole)
