"""The inputs of every evaluation, by name, as views of tables that lie on the device before the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType

from max_zimage.device.devices import upload
from max_zimage.graphs.step.inputs import AdvanceInputs, BranchInputs, GuideInputs, PredictInputs
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.items import Items

Vectors = list[Buffer]


class StepInputs(NamedTuple):
    """What one evaluation takes."""

    predict: PredictInputs[Buffer]
    branches: BranchInputs[Buffer]
    guide: GuideInputs[Buffer]
    advance: AdvanceInputs[Buffer]

    @property
    def arguments(self) -> tuple[Buffer, ...]:
        """All of it, in the order of `graphs.step.compose.denoise_step`."""
        return (*self.predict, *self.branches, *self.guide, *self.advance)

    @property
    def num_rows(self) -> int:
        """Branch rows."""
        return int(self.predict.valid_length.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """What changes from one evaluation to the next, whichever pictures are in the batch.

    Attributes:
        modulation: float32 [num_blocks, 4, variants, dim] of each evaluation.
        final_scale: float32 [dim] each.
        guides: `GuideInputs` each.
        advances: The coefficients of `AdvanceInputs` each, behind the history.
    """

    modulation: Vectors
    final_scale: Vectors
    guides: list[GuideInputs[Buffer]]
    advances: list[tuple[Buffer, ...]]


def make_tables(inputs: ZImageModelInputs, modulation: Buffer, final_scale: Buffer, device: Device) -> Tables:
    """Cut the tables of a schedule into evaluations; nothing of the modulation is copied.

    Args:
        inputs: The request.
        modulation: float32 [evaluations, num_blocks, 4, variants, dim].
        final_scale: float32 [evaluations, dim].
        device: Where the transformer runs.
    """
    plan, guidance = inputs.evaluations, inputs.guidance
    _, blocks, four, variants, dim = map(int, modulation.shape)
    active = [[each.scales[i] for each in guidance.others if each.scales[i]] for i in range(plan.count)]
    scales, limits = _vectors(guidance.negative, device), _vectors(guidance.limits, device)
    others = [upload(np.asarray(row, np.float32), device) for row in active]
    updates, past = _vectors(plan.updates, device), _vectors(plan.past, device)
    pushed, mixed = _vectors(plan.pushed, device), _vectors(plan.mixed, device)
    return Tables(
        modulation=[
            modulation[i : i + 1, :, :, :, :].view(DType.float32, (blocks, four, variants, dim))
            for i in range(plan.count)
        ],
        final_scale=[final_scale[i : i + 1, :].view(DType.float32, (dim,)) for i in range(plan.count)],
        guides=[GuideInputs(*each) for each in zip(scales, others, limits, strict=True)],
        advances=list(zip(updates, past, pushed, mixed, strict=True)),
    )


def step_inputs(
    tables: Tables, index: int, items: Items, captions: Buffer, latents: Buffer, history: Buffer
) -> StepInputs:
    """The inputs of one evaluation.

    Args:
        tables: From `make_tables`.
        index: Its number.
        items: The branch rows that take part in it.
        captions: Their caption tokens, [items, caption_padded, dim] in the model's dtype.
        latents: What it begins with, float32 [batch, image_tokens, patch_dim].
        history: What the sampler remembers, float32 [slots, batch, image_tokens, patch_dim].
    """
    return StepInputs(
        predict=PredictInputs(
            latents=latents,
            caption_tokens=captions,
            image_rope=items.image_rope,
            rope=items.rope,
            valid_length=items.valid_length,
            offsets=items.offsets,
            latent_rows=items.latent_rows,
            variants=items.variants,
            modulation=tables.modulation[index],
            final_scale=tables.final_scale[index],
        ),
        branches=BranchInputs(items.positive_rows, items.negative_rows, items.other_rows),
        guide=tables.guides[index],
        advance=AdvanceInputs(history, *tables.advances[index]),
    )


def euler_step_inputs(
    items: Items,
    captions: Buffer,
    latents: Buffer,
    modulation: Buffer,
    final_scale: Buffer,
    *,
    guidance_scale: float = 0.0,
    cfg_normalization: float = 0.0,
    delta: float,
) -> StepInputs:
    """One Euler step on tables of its own, for measurements and tests.

    Args:
        items: The branch rows.
        captions: Their caption tokens, [items, caption_padded, dim] in the model's dtype.
        latents: float32 [batch, image_tokens, patch_dim].
        modulation: float32 [num_blocks, 4, variants, dim].
        final_scale: float32 [dim].
        guidance_scale: How far guidance goes.
        cfg_normalization: Limit of the prediction's norm; 0 for none.
        delta: Next sigma minus this one.
    """
    device = latents.device

    def vector(*values: float) -> Buffer:
        return upload(np.asarray(values, np.float32), device)

    def nothing(*shape: int) -> Buffer:
        return Buffer.zeros(shape, DType.float32, device)

    tables = Tables(
        modulation=[modulation],
        final_scale=[final_scale],
        guides=[GuideInputs(vector(guidance_scale), nothing(0), vector(cfg_normalization))],
        advances=[(vector(delta, 0.0), nothing(0), nothing(0, 2), nothing(0, 0))],
    )
    return step_inputs(tables, 0, items, captions, latents, nothing(0, *map(int, latents.shape)))


def _vectors(table: npt.NDArray[np.float32], device: Device) -> Vectors:
    """A table on the device, cut into one piece for each evaluation; one transfer."""
    shape: Sequence[int] = table.shape[1:] or (1,)
    size = int(np.prod(shape))
    if size == 0:
        return [Buffer.zeros(tuple(shape), DType.float32, device)] * len(table)
    whole = upload(table.reshape(len(table), size), device)
    return [whole[i : i + 1, :].view(DType.float32, tuple(shape)) for i in range(len(table))]
