"""Advance: a sampler's update, one small matrix times what it has seen; which sampler it is, its coefficients say.

    latents' = (latents - a · prediction) + (b · latents + sum of c[j] · history[j])
    history'[i] = d[i] · latents + e[i] · prediction + sum of f[i, j] · history[j]

Every explicit sampler is of this form: Euler has no slot of history and b = 0, Heun keeps its base point in one, DPM++
2M the last clean estimate. Written in this order Euler is, to the bit, latents - delta · prediction; with no slot there
is nothing to sum. What a sampler does with a slot is its own affair: noise that is drawn comes in one, too.

The two graphs behind are the schedule's arithmetic on its own, for callers that drive the loop themselves.

Reference: diffusers schedulers/scheduling_flow_match_euler_discrete.py, step.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, IMAGE_TOKENS
from max_zimage.graphs.step.inputs import AdvanceInputs

SIGMAS = "sigmas"


class Advance(Module[..., tuple[Tensor, Tensor]]):
    """One update of the latents, and of what the sampler remembers."""

    def forward(self, latents: Tensor, prediction: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Update.

        Args:
            latents: float32 [batch, image_tokens, patch_dim].
            prediction: like `latents`: the direction from noise to picture, as the transformer predicts it.
            *inputs: `AdvanceInputs`.

        Returns:
            The latents of the next evaluation, and the history for it.
        """
        given = AdvanceInputs(*inputs)
        slots = given.history.shape[0]
        past = F.squeeze(F.sum(F.reshape(given.past, [slots, 1, 1, 1]) * given.history, axis=0), 0)
        moved = euler_step(latents, prediction, given.update[0:1]) + (given.update[1:2] * latents + past)
        mixed = F.reshape(given.mixed, [slots, slots, 1, 1, 1]) * F.unsqueeze(given.history, 0)
        of_latents, of_prediction = (F.reshape(given.pushed[:, i : i + 1], [slots, 1, 1, 1]) for i in range(2))
        history = of_latents * F.unsqueeze(latents, 0) + of_prediction * F.unsqueeze(prediction, 0)
        return moved, history + F.squeeze(F.sum(mixed, axis=1), 1)


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

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (TensorType(DType.float32, [SIGMAS], device),)


class SchedulerStep(Module[[Tensor, Tensor, Tensor], Tensor]):
    """One Euler update, sign folded in."""

    def forward(self, latents: Tensor, noise_pred: Tensor, dt: Tensor) -> Tensor:
        """Return latents - dt · noise_pred; see `euler_step`."""
        return euler_step(latents, noise_pred, dt)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments: [batch, image_tokens, patch_dim] twice, and [1]."""
        tokens = TensorType(DType.float32, [BATCH, IMAGE_TOKENS, "patch_dim"], device)
        return (tokens, tokens, TensorType(DType.float32, [1], device))


def euler_step(latents: Tensor, noise_pred: Tensor, dt: Tensor) -> Tensor:
    """Euler update with the sign folded in: the transformer predicts the direction from noise to picture, sigma falls.

    Args:
        latents: float32 [batch, image_tokens, patch_dim].
        noise_pred: like `latents`, the transformer's prediction as it is.
        dt: float32 [1], next sigma minus current sigma (negative).

    Returns:
        latents - dt · noise_pred.
    """
    return latents - dt * noise_pred
