"""One evaluation of the model and what a sampler makes of it, in one graph: compose(Predict, Guide, Advance).

    latents -> [Predict] -> velocity of every branch row -> [Guide] -> prediction -> [Advance] -> latents, history

One compiled call per evaluation, whichever sampler and however many branches. Latents, guidance and the update are
float32; the model's dtype begins and ends inside the Predict. `UpdatePicture` is Guide and Advance without a Predict,
for step caches that take each branch of each picture through a Predict of their own.

Reference: diffusers pipelines/z_image/pipeline_z_image.py.
"""

from __future__ import annotations

from typing import Any, Protocol

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import BATCH, IMAGE_TOKENS, OTHERS
from max_zimage.graphs.guiders.linear import LinearGuide
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.advance import Advance
from max_zimage.graphs.step.extrapolate import Extrapolate
from max_zimage.graphs.step.inputs import BranchInputs, GuideInputs, advance_types, branch_types, guide_types
from max_zimage.graphs.step.predict import Predict


class Predictor(Protocol):
    """What `Composed` needs of a Predict."""

    Inputs: Any

    def __call__(self, *inputs: Tensor) -> Tensor:
        """`Inputs`, the latents first, to the velocity of every branch row."""

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `Inputs`."""


class Composed(Module[..., tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Predict, Guide and Advance as one graph."""

    def __init__(self, predict: Predictor, guide: Module[..., Tensor], advance: Advance, patch_dim: int) -> None:
        self.predict, self.guide, self.advance, self.patch_dim = predict, guide, advance, patch_dim

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One evaluation.

        Args:
            *inputs: The Predict's own, `BranchInputs`, `GuideInputs`, `AdvanceInputs`.

        Returns:
            Latents of the next evaluation, float32 [batch, image_tokens, patch_dim]; the sampler's history, float32
            [slots, batch, image_tokens, patch_dim]; the prediction, like the latents; and the velocity of every branch
            row, float32 [items, image_tokens, patch_dim].
        """
        taken = iter(inputs)
        predicting = [next(taken) for _ in self.predict.Inputs._fields]
        branches = BranchInputs(*(next(taken) for _ in BranchInputs._fields))
        guiding = [next(taken) for _ in GuideInputs._fields]
        velocity = self.predict(*predicting)
        positive, negative = (
            F.gather(velocity, rows, axis=0) for rows in (branches.positive_rows, branches.negative_rows)
        )
        prediction = self.guide(positive, negative, F.gather(velocity, branches.other_rows, axis=0), *guiding)
        latents, history = self.advance(predicting[0], prediction, *taken)
        return latents, history, prediction, velocity

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        own = self.predict.input_types(dtype, device)
        return (*own, *branch_types(device), *guide_types(device), *advance_types(self.patch_dim, device))


def denoise_step(spec: TransformerSpec) -> Composed:
    """A step that runs the transformer."""
    return Composed(Predict(spec), LinearGuide(), Advance(), spec.patch_dim)


def extrapolated_step(spec: TransformerSpec) -> Composed:
    """A step that extrapolates instead, as TaylorSeer does."""
    return Composed(Extrapolate(spec), LinearGuide(), Advance(), spec.patch_dim)


class UpdatePicture(Module[..., tuple[Tensor, Tensor, Tensor]]):
    """Guide and Advance for one picture of a batch; the others stay where they are."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec, self.guide, self.advance = spec, LinearGuide(), Advance()

    def forward(
        self,
        latents: Tensor,
        predicted: Tensor,
        row: Tensor,
        positive: Tensor,
        negative: Tensor,
        others: Tensor,
        guidance_scale: Tensor,
        other_scales: Tensor,
        cfg_normalization: Tensor,
        history: Tensor,
        *coefficients: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one picture to its next evaluation.

        Args:
            latents: float32 [batch, image_tokens, patch_dim].
            predicted: like `latents`, where predictions are gathered.
            row: int32 [1], the picture.
            positive: float32 [1, image_tokens, patch_dim]; see `graphs.guiders.linear`, also for what follows.
            negative: like `positive`.
            others: float32 [others, 1, image_tokens, patch_dim].
            guidance_scale: float32 [1].
            other_scales: float32 [others].
            cfg_normalization: float32 [1].
            history: float32 [slots, batch, image_tokens, patch_dim].
            *coefficients: The rest of `AdvanceInputs`.

        Returns:
            Like `latents`, `history` and `predicted`.
        """
        prediction = self.guide(positive, negative, others, guidance_scale, other_scales, cfg_normalization)
        own = F.gather(latents, row, axis=0), F.gather(history, row, axis=1)
        moved, remembered = self.advance(own[0], prediction, own[1], *coefficients)
        batch = latents.shape[0]
        rows = F.range(0, batch, 1, out_dim=batch, dtype=DType.int32, device=latents.device)
        chosen = F.reshape(rows == row, [batch, 1, 1])

        def placed(new: Tensor, old: Tensor) -> Tensor:
            return F.where(F.broadcast_to(chosen, old.shape), F.broadcast_to(new, old.shape), old)

        return placed(moved, latents), placed(remembered, history), placed(prediction, predicted)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        pictures = TensorType(DType.float32, [BATCH, IMAGE_TOKENS, self.spec.patch_dim], device)
        one = TensorType(DType.float32, [1, IMAGE_TOKENS, self.spec.patch_dim], device)
        others = TensorType(DType.float32, [OTHERS, 1, IMAGE_TOKENS, self.spec.patch_dim], device)
        row = TensorType(DType.int32, [1], device)
        advance = advance_types(self.spec.patch_dim, device)
        return (pictures, pictures, row, one, one, others, *guide_types(device), *advance)
