"""How one denoising step is taken: as it is, or with a step cache; one compiled call or a few, and no transfer.

A stepper belongs to one batch on its way from noise to picture. What it remembers between steps stays on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import download, upload
from max_zimage.pipeline.batch import Step, ZImageModelInputs
from max_zimage.sampling.positions import sequence_offsets
from max_zimage.sampling.step_cache import FirstBlockCache, TaylorSeer

State = object
"""What a stepper hands on to the one that continues its work with fewer pictures."""


class Stepper(Protocol):
    """Takes steps in order."""

    def __call__(self, index: int, step: Step, latents: Buffer) -> Buffer:
        """Take a step.

        Args:
            index: Its number among those of the inputs.
            step: What changes from step to step.
            latents: float32 [batch, image_tokens, patch_dim].

        Returns:
            Latents of the next step.
        """

    def computed(self) -> npt.NDArray[np.bool_]:
        """Which steps ran the whole transformer, bool [steps so far, items]; waits for the device.

        Items are the pictures under their prompts, then with guidance under their negative prompts. A branch that is
        not part of a step counts as not computed.
        """

    def state(self, pictures: Sequence[int]) -> State:
        """What was learned about some of the pictures, for a stepper that goes on with these alone."""


class PlainStepper:
    """Every step runs the transformer."""

    def __init__(self, transformer: ZImageTransformerModel, inputs: ZImageModelInputs, captions: Buffer) -> None:
        self._model = transformer.model
        self._guided = inputs.items.arguments(captions)
        self._plain = inputs.items.positive().arguments(captions)
        self._computed: list[int] = []

    def __call__(self, index: int, step: Step, latents: Buffer) -> Buffer:
        """See `Stepper`."""
        arguments = self._guided if step.guided else self._plain
        self._computed.append(_items(arguments))
        return self._model(latents, *arguments, *step.arguments)[0]

    def computed(self) -> npt.NDArray[np.bool_]:
        """See `Stepper`."""
        return np.arange(_items(self._guided)) < np.asarray(self._computed)[:, None]

    def state(self, pictures: Sequence[int]) -> State:
        """Nothing is remembered."""
        return None


@dataclass(frozen=True, eq=False)
class _Expansion:
    """Velocity and its differences at the last computed step; float32 [items, image_tokens, patch_dim] each."""

    velocity: Buffer
    first: Buffer
    second: Buffer

    def of(self, items: int) -> _Expansion:
        """The first items alone: the negative branch is behind the positive one, and may come to an end."""
        return _Expansion(*(each[:items, :, :] for each in (self.velocity, self.first, self.second)))


class TaylorStepper:
    """Runs the transformer where the schedule says so, and extrapolates in between."""

    def __init__(
        self,
        transformer: ZImageTransformerModel,
        inputs: ZImageModelInputs,
        captions: Buffer,
        cache: TaylorSeer,
        state: State,
    ) -> None:
        done, device = inputs.steps_done, transformer.device
        steps = done + inputs.num_inference_steps
        self._model, (self._update, self._extrapolate) = transformer.model, transformer.taylor_graphs
        self._guided = inputs.items.arguments(captions)
        self._plain = inputs.items.positive().arguments(captions)
        self._computes = cache.computes(steps)[done:]
        self._coefficients = _rows(cache.coefficients(steps)[done:], device)
        self._gaps = _rows(cache.gaps(steps)[done:].reshape(-1, 1), device)
        self._expansion: _Expansion | None = None
        if isinstance(state, list):
            self._expansion = _Expansion(*(upload(each, device) for each in state))
        self._computed: list[int] = []

    def __call__(self, index: int, step: Step, latents: Buffer) -> Buffer:
        """See `Stepper`."""
        arguments = self._guided if step.guided else self._plain
        items = _items(arguments)
        known = None if self._expansion is None else self._expansion.of(items)
        if known is not None and not self._computes[index]:
            rows = arguments[-2:]
            terms = (known.velocity, known.first, known.second, self._coefficients[index])
            self._computed.append(0)
            return self._extrapolate(latents, *terms, *rows, *step.arguments[2:])[0]
        latents, velocity = self._model(latents, *arguments, *step.arguments)
        known = _Expansion(velocity, velocity, velocity) if known is None else known
        differences = self._update(velocity, known.velocity, known.first, self._gaps[index])
        self._expansion = _Expansion(velocity, *differences)
        self._computed.append(items)
        return latents

    def computed(self) -> npt.NDArray[np.bool_]:
        """See `Stepper`."""
        return np.arange(_items(self._guided)) < np.asarray(self._computed)[:, None]

    def state(self, pictures: Sequence[int]) -> State:
        """The expansion of some pictures, on the host."""
        if self._expansion is None:
            return None
        known, batch = self._expansion, int(self._guided[-1].shape[0])
        rows = [row + start for start in range(0, int(known.velocity.shape[0]), batch) for row in pictures]
        return [download(each)[rows] for each in (known.velocity, known.first, known.second)]


class FirstBlockStepper:
    """Asks the first block for every branch of every picture; nothing but the graph knows what it answers."""

    def __init__(
        self,
        transformer: ZImageTransformerModel,
        inputs: ZImageModelInputs,
        captions: Buffer,
        cache: FirstBlockCache,
        state: State,
    ) -> None:
        done, device, items = inputs.steps_done, transformer.device, inputs.items
        self._step, self._guidance = transformer.first_block_graphs(cache.block)
        self._batch, count = inputs.batch, int(items.latent_rows.shape[0])
        self._thresholds = _rows(cache.thresholds(done + inputs.num_inference_steps)[done:, None], device)
        whole = (captions, items.image_rope, items.rope)
        tokens = int(items.rope.shape[1])
        offsets = [upload(sequence_offsets([attended], tokens), device) for attended in items.lengths]
        self._items = [
            (
                items.latent_rows[i : i + 1],
                *(each[i : i + 1, :, :] for each in whole[:1]),
                *(each[i : i + 1, :, :, :] for each in whole[1:]),
                items.valid_length[i : i + 1],
                offsets[i],
            )
            for i in range(count)
        ]
        length = int((items.image_rope if cache.block == "noise_refiner" else items.rope).shape[1])
        image_tokens = int(inputs.latents.shape[2]) * int(inputs.latents.shape[4])
        shapes = ((1, length, transformer.spec.dim), (1, image_tokens, transformer.spec.dim))
        # Zeros resemble no change of a first block: the first step computes.
        nothing = tuple(Buffer.zeros(shape, transformer.dtype, device) for shape in shapes)
        self._states: list[tuple[Buffer, ...]] = state if isinstance(state, list) else [nothing] * count
        self._flags: list[dict[int, Buffer]] = []

    def __call__(self, index: int, step: Step, latents: Buffer) -> Buffer:
        """See `Stepper`."""
        modulation, final_scale, *guidance = step.arguments
        self._flags.append({})
        for picture in range(self._batch):
            arguments = (modulation, final_scale, self._thresholds[index])
            positive = negative = self._velocity(picture, latents, arguments)
            if step.guided:
                negative = self._velocity(picture + self._batch, latents, arguments)
            latents = self._guidance(latents, self._items[picture][0], positive, negative, *guidance)[0]
        return latents

    def computed(self) -> npt.NDArray[np.bool_]:
        """See `Stepper`."""
        items = range(len(self._items))
        return np.array([[item in flags and bool(download(flags[item])[0]) for item in items] for flags in self._flags])

    def state(self, pictures: Sequence[int]) -> State:
        """What is remembered for some pictures; it stays on the device."""
        return [self._states[row + start] for start in range(0, len(self._states), self._batch) for row in pictures]

    def _velocity(self, item: int, latents: Buffer, arguments: tuple[Buffer, ...]) -> Buffer:
        velocity, change, rest, flag = self._step(latents, *self._items[item], *arguments, *self._states[item])
        self._states[item], self._flags[-1][item] = (change, rest), flag
        return velocity


def stepper_of(
    transformer: ZImageTransformerModel, inputs: ZImageModelInputs, captions: Buffer, state: State = None
) -> Stepper:
    """The stepper that a batch asks for.

    Args:
        transformer: Runs the steps.
        inputs: The batch.
        captions: From `max_zimage.pipeline.denoising.caption_tokens`.
        state: From the stepper whose work is continued.
    """
    if isinstance(inputs.step_cache, TaylorSeer):
        return TaylorStepper(transformer, inputs, captions, inputs.step_cache, state)
    # With a threshold of 0 every step is computed, and the plain stepper computes all items at once.
    if isinstance(inputs.step_cache, FirstBlockCache) and inputs.step_cache.threshold > 0:
        return FirstBlockStepper(transformer, inputs, captions, inputs.step_cache, state)
    return PlainStepper(transformer, inputs, captions)


def _rows(table: npt.NDArray[np.float32], device: Device) -> list[Buffer]:
    """A table on the device, cut into float32 [columns] a row; one transfer."""
    steps, columns = table.shape
    whole = upload(table, device)
    return [whole[i : i + 1, :].view(DType.float32, (columns,)) for i in range(steps)]


def _items(arguments: tuple[Buffer, ...]) -> int:
    """Items of a step, from the arguments of `graphs.step.denoise.DenoiseStep`."""
    return int(arguments[0].shape[0])
