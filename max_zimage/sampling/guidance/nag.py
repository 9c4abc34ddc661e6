"""Normalized attention guidance: in which evaluations the negative branch acts inside attention, and how far.

Those whose noise level is at least `sigma_end`; in the others the positive branch runs alone.

Reference: ComfyUI-NAG, nag_sigma_end.
"""

from __future__ import annotations

import numpy as np

from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Nag


def nag(plan: Evaluations, *, scale: float, tau: float, alpha: float, sigma_end: float) -> Nag:
    """That of a request.

    Args:
        plan: Its evaluations.
        scale: How far from the negative branch, at least 1.
        tau: How much larger a token may become, at least 1.
        alpha: What of the guided token counts, above 0 and at most 1.
        sigma_end: The noise level below which it is off.

    Raises:
        ValueError: If a number is out of its range.
    """
    if not (scale >= 1 and tau >= 1 and 0 < alpha <= 1 and 0 <= sigma_end <= 1):
        raise ValueError(
            "normalized attention guidance takes a scale and a tau of at least 1, an alpha above 0 and at most 1 and a "
            f"noise level from 0 to 1, got {scale}, {tau}, {alpha} and {sigma_end}"
        )
    return Nag(active=plan.sigmas >= np.float32(sigma_end), scale=scale, tau=tau, alpha=alpha)
