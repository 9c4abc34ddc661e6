"""Infinity that a graph would make a number of, and hide: the hyperbolic tangent, a clamp, a quotient.

What passes here is NaN instead, which the rest of the graphs carry on to the picture, where it is found. Norms are
left as they are: infinity makes NaN of them, and to look after finite numbers that are too large for their squares
would cost another pass over the input of each norm on a GPU. The project's own kernels look after these for nothing.
"""

from __future__ import annotations

import math

from max.experimental import functional as F
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
