"""Overflow that a normalization would hide.

Where the sum of squares is infinite, its inverse root is 0 and whatever was normalized becomes 0: a picture that looks
finite and is wrong. The hyperbolic tangent and a clamp make a number of infinity too. What passes here is NaN instead,
which the rest of the graphs carry on to the picture, where it is found.
"""

from __future__ import annotations

import math

from max.experimental import functional as F
from max.experimental.nn import norm
from max.experimental.tensor import Tensor

LIMIT = 1e16
"""Far beyond anything that a model computes; so many squares of it as a token is wide still have a float32 sum."""


def unless_too_large(result: Tensor, x: Tensor) -> Tensor:
    """What was made of `x`; NaN where an element of `x` is NaN, infinite, or `LIMIT` and more.

    Args:
        result: Of the shape of `x`.
        x: float32 or bfloat16.
    """
    # MAX's x < y is "not x >= y", and true of NaN; its x > y is false of NaN.
    return F.where(-F.abs(x) > -LIMIT, result, math.nan)


class RMSNorm(norm.RMSNorm):
    """MAX's RMSNorm with NaN in place of the zeros that it makes of numbers whose squares it cannot sum."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> the same."""
        return unless_too_large(super().forward(x), x)
