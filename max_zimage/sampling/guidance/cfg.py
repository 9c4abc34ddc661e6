"""Classifier-free guidance: away from what the negative prompt shows.

Reference: diffusers pipelines/z_image/pipeline_z_image.py (guidance_scale, cfg_truncation, cfg_normalization).
"""

from __future__ import annotations

import numpy as np

from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Guidance


def guidance(plan: Evaluations, scale: float, truncation: float, normalization: float) -> Guidance:
    """Guidance of a request.

    Args:
        plan: Its evaluations.
        scale: Guidance scale, 0 for none.
        truncation: Evaluations whose timestep (1 - sigma) is above this run without guidance. Above 1 nothing is cut.
        normalization: Limit of the prediction's norm as a share of the positive branch's; 0 for none.
    """
    # float64, as the reference compares Python floats: in float32 a threshold such as 0.1 would move across a step.
    cut = plan.timesteps.astype(np.float64) > truncation
    scales = np.where(cut, np.float32(0), np.float32(scale)).astype(np.float32)
    return Guidance(negative=scales, cfg_normalization=normalization)
