"""Classifier-free guidance: away from what the negative prompt shows.

Reference: diffusers pipelines/z_image/pipeline_z_image.py (guidance_scale, cfg_truncation, cfg_normalization).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Guidance, Variant, within


def guidance(
    plan: Evaluations,
    scale: float | Sequence[float],
    truncation: float,
    normalization: float,
    interval: tuple[float, float] = (0.0, 1.0),
    variant: Variant | None = None,
) -> Guidance:
    """Guidance of a request.

    Args:
        plan: Its evaluations.
        scale: Guidance scale, 0 for none; or one for each step of the whole schedule.
        truncation: Evaluations whose timestep (1 - sigma) is above this run without guidance. Above 1 nothing is cut.
        normalization: Limit of the prediction's norm as a share of the positive branch's; 0 for none.
        interval: Share of the steps at which guidance begins, and at which it ends.
        variant: How the branches make a prediction; plainly if not given.
    """
    # float64, as the reference compares Python floats: in float32 a threshold such as 0.1 would move across a step.
    cut = (plan.timesteps.astype(np.float64) > truncation) | ~within(plan, *interval)
    of_steps = np.asarray(scale, np.float32)
    scales = np.where(cut, np.float32(0), of_steps if of_steps.ndim == 0 else of_steps[plan.whole_steps])
    return Guidance(negative=scales.astype(np.float32), cfg_normalization=normalization, variant=variant or Variant())
