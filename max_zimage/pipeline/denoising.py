"""The denoising loop of latents of one size, a step at a time; `max_zimage.pipeline.run` drives it.

Between the first step and the last nothing but compiled graphs touches a tensor: no transfer, no synchronization. The
one exception is noise of samplers that draw some, see `max_zimage.pipeline.step_noise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType
from max.profiler import Tracer

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import download, kept_rows
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.inpainting import keeping_of
from max_zimage.pipeline.items import Items
from max_zimage.pipeline.step_inputs import make_tables, step_inputs
from max_zimage.pipeline.step_noise import StepNoise
from max_zimage.pipeline.step_positions import StepPositions
from max_zimage.pipeline.steppers import stepper_of


class Denoising:
    """A batch on its way from noise to clean latents.

    Args:
        transformer: Makes the schedule's modulation table, and runs the evaluations.
        inputs: The request.
        captions: Caption tokens of all branch rows, [items, caption_padded, dim] in the model's dtype.
        pack: Latents to tokens, [batch, image tokens, 4 · channels].

    Attributes:
        latents: Those of the next step, packed.
        step: Steps that are done.

    Raises:
        ValueError: If the step cache cannot go with the guidance.
    """

    def __init__(
        self,
        transformer: ZImageTransformerModel,
        inputs: ZImageModelInputs,
        captions: Buffer,
        pack: Callable[[Buffer], Buffer],
    ) -> None:
        self._inputs, self._items, self._captions = inputs, inputs.items, captions
        self._stepper, latents = stepper_of(transformer, inputs), pack(inputs.latents)
        spec, plan = transformer.spec, inputs.evaluations
        kept = inputs.guidance.kept(spec.num_refiner_layers, spec.num_layers)
        self._tables = make_tables(inputs, *transformer.modulation_table(plan.timesteps, kept), transformer.device)
        self._rows = self._rows_of_branches()
        self._noise = StepNoise(inputs, transformer.device)
        self._keeping = keeping_of(transformer, inputs.masked, inputs.schedule.sigmas, pack)
        self._positions = StepPositions(transformer, inputs)
        self._history = Buffer.zeros((plan.slots, *map(int, latents.shape)), DType.float32, transformer.device)
        self.latents = latents
        self._before = self._prediction = latents
        self._sigma = np.float32(0)
        self.step = 0

    @property
    def num_steps(self) -> int:
        """Steps of the whole way."""
        return self._inputs.num_inference_steps

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in tokens."""
        return self._inputs.sides

    @property
    def last_evaluations(self) -> int:
        """Evaluations of the last step."""
        return len(self._inputs.evaluations.of_step(self.step - 1))

    @property
    def is_done(self) -> bool:
        """Whether all steps are."""
        return self.step == self.num_steps

    def advance(self) -> float:
        """Take one step, which is one evaluation or several.

        Returns:
            The timestep that it began at, 1000 · sigma.
        """
        plan = self._inputs.evaluations
        with Tracer(f"step {self.step + 1}"):
            for index in plan.of_step(self.step):
                self._before, self._sigma = self.latents, plan.sigmas[index]
                self._noise.fill(self._history)
                items, captions = self._rows[self._inputs.guidance.active(index)]
                items = self._positions.of(items, index)
                inputs = step_inputs(self._tables, index, items, captions, self.latents, self._history)
                result = self._stepper(index, inputs)
                self.latents, self._history, self._prediction = result[:3]
                self._noise.draw(index + 1)
            if self._keeping is not None:
                self.latents = self._keeping(self.step, self.latents)
        self.step += 1
        return float(1000 * self._inputs.schedule.sigmas[self.step - 1])

    def replace(self, latents: Buffer) -> None:
        """Go on from other latents than the last step has left.

        Args:
            latents: Like those, packed.
        """
        # The clean estimate is then what the last prediction makes of these.
        self.latents = self._before = latents
        self._sigma = self._inputs.schedule.sigmas[self.step]

    def keep(self, pictures: Sequence[int]) -> None:
        """Go on with some of the pictures; what belongs to them stays on the device.

        Args:
            pictures: Which ones, at least one.
        """
        rows, branches = self._items.rows_of(pictures), self._items.branches
        self._captions = kept_rows(self._captions, rows)
        self._items = self._items.of(pictures, branches)
        self._rows = self._rows_of_branches()
        self._stepper.keep(rows)
        self._noise.keep(pictures)
        if self._keeping is not None:
            self._keeping.keep(pictures)
        self.latents, self._before, self._prediction = (
            kept_rows(each, pictures) for each in (self.latents, self._before, self._prediction)
        )
        self._history = _kept_slots(self._history, pictures)

    def clean_estimate(self) -> npt.NDArray[np.float32]:
        """What the last evaluation takes for the clean latents: [pictures, image tokens, 4 · channels], on the host."""
        before, prediction = download(self._before), download(self._prediction)
        return np.asarray(before + self._sigma * prediction, np.float32)

    def computed(self) -> npt.NDArray[np.bool_]:
        """Which evaluations ran the whole transformer, bool [evaluations so far, items]; waits for the device."""
        return self._stepper.computed(self._items.count)

    def _rows_of_branches(self) -> dict[tuple[int, ...], tuple[Items, Buffer]]:
        """The branch rows, and their caption tokens, of each set of branches that an evaluation may have."""
        found, pictures = {}, range(self._items.batch)
        for index in range(self._inputs.evaluations.count):
            active = self._inputs.guidance.active(index)
            if active not in found:
                items = self._items if active == self._items.branches else self._items.of(pictures, active)
                found[active] = items, kept_rows(self._captions, self._items.rows_of(pictures, active))
        return found


def _kept_slots(history: Buffer, pictures: Sequence[int]) -> Buffer:
    """Some pictures' part of a sampler's history, [slots, batch, image_tokens, patch_dim]."""
    slots, batch, tokens, width = map(int, history.shape)
    if slots == 0:
        return Buffer.zeros((0, len(pictures), tokens, width), DType.float32, history.device)
    flat = history.view(DType.float32, (slots * batch, tokens, width))
    rows = [slot * batch + picture for slot in range(slots) for picture in pictures]
    return kept_rows(flat, rows).view(DType.float32, (slots, len(pictures), tokens, width))
