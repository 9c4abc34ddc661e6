"""The schedule's arithmetic as graphs of its own, for callers that drive the loop themselves.

`graphs.step.denoise.DenoiseStep` contains the Euler update; the pipeline's own loop needs neither of these.

Reference: diffusers schedulers/scheduling_flow_match_euler_discrete.py, step.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, IMAGE_TOKENS
from max_zimage.graphs.step.denoise import euler_step

SIGMAS = "sigmas"


class PrepareScheduler(Module[[Tensor], tuple[Tensor, Tensor]]):
    """Sigmas to timesteps and step deltas."""

    def forward(self, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Split a schedule.

        Args:
            sigmas: float32 [steps + 1], falling, the last one 0.

        Returns:
            float32 [steps], the noise level that each step starts from, and float32 [steps], what each step adds to it.
        """
        current = sigmas[:-1]
        return current, sigmas[1:] - current

    def input_types(self, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (TensorType(DType.float32, [SIGMAS], device),)


class SchedulerStep(Module[[Tensor, Tensor, Tensor], Tensor]):
    """One Euler update, sign folded in."""

    def forward(self, latents: Tensor, noise_pred: Tensor, dt: Tensor) -> Tensor:
        """Return latents - dt · noise_pred; see `graphs.step.denoise.euler_step`."""
        return euler_step(latents, noise_pred, dt)

    def input_types(self, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments: [batch, image_tokens, patch_dim] twice, and [1]."""
        tokens = TensorType(DType.float32, [BATCH, IMAGE_TOKENS, "patch_dim"], device)
        return (tokens, tokens, TensorType(DType.float32, [1], device))
