"""The flow-matching noise schedule as pure numpy.

Reference: diffusers `FlowMatchEulerDiscreteScheduler.set_timesteps` with a static shift, and `ZImagePipeline.__call__`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """What a checkpoint's scheduler configuration decides.

    Attributes:
        shift: Static time shift; 3.0 for the distilled checkpoints, 6.0 for the base model.
        num_train_timesteps: Scale between a sigma and the scheduler's timestep, 1000.
    """

    shift: float
    num_train_timesteps: int
