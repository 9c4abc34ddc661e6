"""A whole run, leg after leg: what `execute` and the server drive alike, a step at a time.

Most runs have one leg. Where there are more, the change to the next one is made with its first step: so whoever looks
at latents after a step sees those that the step has left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.profiler import Tracer

from max_zimage import progress
from max_zimage.pipeline.batch import Captions, ZImageModelInputs
from max_zimage.pipeline.callbacks import StepHook
from max_zimage.pipeline.denoising import Denoising
from max_zimage.pipeline.later import inputs_of_later
from max_zimage.pipeline.parts import Parts
from max_zimage.pipeline.stages import caption_features, conditioned


class Run:
    """A batch on its way from noise to clean latents.

    Args:
        parts: The components.
        inputs: The batch.
        pack: float32 [batch, channels, height/16, 2, width/16, 2] to image tokens.

    Raises:
        ValueError: If the step cache cannot go with the guidance.
    """

    def __init__(self, parts: Parts, inputs: ZImageModelInputs, pack: Callable[[Buffer], Buffer]) -> None:
        self._parts, self._pack, self._later = parts, pack, inputs.later
        self.num_steps = inputs.num_inference_steps + sum(each.leg.plan.num_steps for each in inputs.later)
        self._num_evaluations = inputs.evaluations.count + sum(each.evaluations.count for each in inputs.later)
        self._features: Buffer | None = caption_features(parts.text_encoder, parts.transformer, inputs.captions)
        self._shown: tuple[Captions, Buffer] | None = None
        self._steps_before = 0
        self._computed: list[npt.NDArray[np.bool_]] = []
        self._leg = self._begun(inputs)

    @property
    def latents(self) -> Buffer:
        """Those of the next step, packed: float32 [batch, image tokens, 4 · channels]."""
        return self._leg.latents

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the latents, in tokens."""
        return self._leg.sides

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._steps_before + self._leg.step

    @property
    def is_done(self) -> bool:
        """Whether all steps are."""
        return self.step == self.num_steps

    def advance(self) -> float:
        """Take one step, which is one evaluation or several; before the first one of a leg, go on to it.

        Returns:
            The timestep that it began at, 1000 · sigma.
        """
        if self._leg.is_done:
            self._change()
        return self._leg.advance()

    def run(self, on_step: StepHook | None = None) -> None:
        """Take all steps that are left, showing progress in evaluations of the model.

        Args:
            on_step: Sees, and may replace, the latents after each step.
        """
        with progress.stage("Denoising", self._num_evaluations) as shown, Tracer("denoising"):
            while not self.is_done:
                timestep = self.advance()
                replacement = on_step(self.step - 1, timestep, self.latents) if on_step else None
                if replacement is not None:
                    self._leg.replace(replacement)
                for _ in range(self._leg.last_evaluations):
                    shown.advance(f"step {self.step}")

    def keep(self, pictures: Sequence[int]) -> None:
        """Go on with some of the pictures; what belongs to them stays on the device.

        Args:
            pictures: Which ones, at least one.
        """
        self._leg.keep(pictures)
        self._later = tuple(each.of(pictures) for each in self._later)
        self._shown = None

    def clean_estimate(self) -> npt.NDArray[np.float32]:
        """What the last evaluation takes for the clean latents: [pictures, image tokens, 4 · channels], on the host."""
        return self._leg.clean_estimate()

    def computed(self) -> npt.NDArray[np.bool_]:
        """Which evaluations ran the whole transformer, bool [evaluations so far, items]; waits for the device.

        Items that are not in a leg count as not computed in it.
        """
        tables = [*self._computed, self._leg.computed()]
        items = max(table.shape[1] for table in tables)
        return np.concatenate([np.pad(table, ((0, 0), (0, items - table.shape[1]))) for table in tables])

    def _change(self) -> None:
        later, *rest = self._later
        inputs = inputs_of_later(later, self._leg, self._parts.transformer, self._parts.vae)
        self._computed.append(self._leg.computed())
        self._steps_before += self._leg.num_steps
        self._later = tuple(rest)
        self._leg = self._begun(inputs)

    def _begun(self, inputs: ZImageModelInputs) -> Denoising:
        """The next leg; texts are encoded once, and refined again where other rows show them."""
        transformer = self._parts.transformer
        if self._shown is None or self._shown[0].rows != inputs.captions.rows:
            assert self._features is not None
            self._shown = inputs.captions, conditioned(transformer, self._features, inputs.captions)
        tokens = self._shown[1]
        if not self._later:
            self._features = self._shown = None
        return Denoising(transformer, inputs, tokens, self._pack)


def sides_at(inputs: ZImageModelInputs, step: int) -> tuple[int, int]:
    """Height and width of a batch's latents in tokens after a step, counted over all legs from 0."""
    found, end = inputs.sides, inputs.num_inference_steps
    for each in inputs.later:
        found = each.sides if step >= end else found
        end += each.leg.plan.num_steps
    return found
