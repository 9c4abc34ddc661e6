"""Skip-layer guidance: away from what the model draws when some of its main layers are left out.

    prediction + scale · (positive - positive without the layers)

The window counts steps of the whole schedule, not evaluations: those with start <= step / steps < stop.

Reference: diffusers guiders/skip_layer_guidance.py (use_original_formulation).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Branch, within


def branch(plan: Evaluations, *, scale: float, layers: Sequence[int], start: float, stop: float) -> Branch:
    """The branch of a request.

    Args:
        plan: Its evaluations.
        scale: What the difference counts, above 0.
        layers: Main layers that are left out, from 0.
        start: Share of the steps before it begins, from 0 to 1.
        stop: Share of the steps before it ends.

    Raises:
        ValueError: If there is nothing to leave out, the scale is not above 0, or the window has no width.
    """
    if not layers:
        raise ValueError("skip-layer guidance needs at least one layer to skip, got none")
    if not scale > 0 or not np.isfinite(scale):
        raise ValueError(f"the scale of skip-layer guidance must be above 0, got {scale}")
    if not 0 <= start < stop <= 1:
        raise ValueError(f"skip-layer guidance must start before it stops, both from 0 to 1, got {start} and {stop}")
    scales = np.where(within(plan, start, stop), np.float32(scale), np.float32(0)).astype(np.float32)
    return Branch(caption="positive", scales=scales, skipped=tuple(sorted(set(layers))))
