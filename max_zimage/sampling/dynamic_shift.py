"""A shift that grows with the picture.

Reference: diffusers pipelines/z_image/pipeline_z_image.py, calculate_shift, whose defaults are the ones here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from max_zimage.sampling.ranges import MAX_SHIFT, MIN_SHIFT

_LARGEST_EXPONENT = 700.0  # of a double; e^700 is far beyond any shift


@dataclass(frozen=True, kw_only=True)
class DynamicShift:
    """Between which ends it grows: mu is linear in the picture's tokens, and the shift e^mu or mu itself.

    Attributes:
        base_tokens: Image tokens that have `base`.
        max_tokens: Image tokens that have `max`.
        base: mu there.
        max: mu there.
        kind: "exponential" for e^mu, "linear" for mu.
    """

    base_tokens: int = 256
    max_tokens: int = 4096
    base: float = 0.5
    max: float = 1.15
    kind: Literal["exponential", "linear"] = "exponential"

    def check(self) -> None:
        """Refuse two ends at one place. Those of a checkpoint that does not use them may be so.

        Raises:
            ValueError: If they are.
        """
        if self.base_tokens == self.max_tokens:
            raise ValueError(f"base_image_seq_len and max_image_seq_len must differ, got {self.max_tokens} for both")

    def shift(self, tokens: int) -> float:
        """The shift of a picture of so many image tokens.

        Raises:
            ValueError: If it is not in the range of shifts.
        """
        slope = (self.max - self.base) / (self.max_tokens - self.base_tokens)
        mu = tokens * slope + (self.base - slope * self.base_tokens)
        found = math.exp(min(mu, _LARGEST_EXPONENT)) if self.kind == "exponential" else mu
        if not MIN_SHIFT <= found <= MAX_SHIFT:
            raise ValueError(
                f"the dynamic shift for {tokens} image tokens is {found:g}, and must be from {MIN_SHIFT} to "
                f"{MAX_SHIFT:g}; give a shift in its place"
            )
        return found
