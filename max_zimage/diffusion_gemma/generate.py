"""Texts by block diffusion: canvas after canvas, each from noise to what the model is sure of.

prompts -> encode -> [ noise -> ( denoise -> draw -> accept -> renoise ) until it settles -> commit ] until it ends

Reference: transformers models/diffusion_gemma/generation_diffusion_gemma.py, DiffusionGemmaGenerationMixin.generate.
Two things differ: a token is drawn among the likeliest 64 in place of the whole vocabulary, and by numbers of the
text's own seed (`max_zimage.diffusion_gemma.sampler`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from max_zimage.diffusion_gemma import sampler
from max_zimage.diffusion_gemma.sampler import Settling, Yes
from max_zimage.diffusion_gemma.settings import TextSettings
from max_zimage.diffusion_gemma.steps import CanvasLook, DeviceCache, DiffusionSteps, Ids
from max_zimage.errors import NotFiniteError

_COLD = 1e-3
"""A temperature below it is a suspect where numbers are not finite: logits are divided by it."""


@dataclass(frozen=True, kw_only=True)
class BlockDraft:
    """All canvases after a denoising step.

    Attributes:
        block: Which canvas, from 0.
        step: Steps that it has had.
        argmax: The likeliest tokens, int64 [rows, canvas].
        written: Tokens of the canvases before, int64 [rows, block * canvas].
        accepted: Which positions were accepted in this step, bool [rows, canvas].
        settled: Which rows are done with this canvas, bool [rows].
    """

    block: int
    step: int
    argmax: Ids
    written: Ids
    accepted: Yes
    settled: Yes


@dataclass(frozen=True, kw_only=True)
class WrittenBlocks:
    """What was written.

    Attributes:
        ids: int64 [rows, blocks * canvas]: after a row's first end all is pad.
        ended: Which rows have an end, bool [rows].
        steps: Denoising steps of each row, over all its canvases, int64 [rows].
    """

    ids: Ids
    ended: Yes
    steps: NDArray[np.int64]


def write_blocks(
    model: DiffusionSteps,
    ids: Ids,
    lengths: Ids,
    seeds: Sequence[int],
    settings: TextSettings,
    *,
    ends: Sequence[int],
    pad: int,
    on_draft: Callable[[BlockDraft], None] = lambda draft: None,
) -> WrittenBlocks:
    """Write behind prompts, until every row has ended or has as many tokens as it may.

    Args:
        model: What denoises.
        ids: Prompts, int64 [rows, longest]; what stands behind a row's length is not read.
        lengths: int64 [rows].
        seeds: One a row.
        settings: How; whole canvases are written, at least as many tokens as it allows.
        ends: Tokens that end a text.
        pad: What stands behind them.
        on_draft: Called after each denoising step; what it raises ends the writing.

    Raises:
        NotFiniteError: If the model is NaN or infinity of a canvas, of which tokens could be drawn, but no text.
    """
    length = model.canvas_length
    blocks = -(-settings.max_new_tokens // length)
    rows = len(ids)
    written = np.zeros((rows, 0), np.int64)
    ended, steps = np.zeros(rows, np.bool_), np.zeros(rows, np.int64)
    cache = model.encode(ids, lengths)
    for block in range(blocks):
        if block:
            cache = model.commit(cache, written[:, -length:])
        canvas, taken = _settle(model, cache, seeds, block, settings, written, on_draft)
        steps += np.where(ended, 0, taken)
        canvas, ends_here = sampler.up_to_end(canvas, ends, pad)
        written = np.concatenate([written, np.where(ended[:, None], pad, canvas)], axis=1)
        ended |= ends_here
        if ended.all():
            break
    return WrittenBlocks(ids=written, ended=ended, steps=steps)


def _settle(
    model: DiffusionSteps,
    cache: DeviceCache,
    seeds: Sequence[int],
    block: int,
    settings: TextSettings,
    written: Ids,
    on_draft: Callable[[BlockDraft], None],
) -> tuple[Ids, NDArray[np.int64]]:
    """One canvas of every row: the likeliest tokens of its last step, and how many steps it took.

    A row that has settled is computed along with the others, and nothing of it is looked at again.
    """
    rows, length, count = len(seeds), model.canvas_length, settings.num_denoising_steps
    canvas = sampler.first_noise(seeds, block, length, model.vocab_size)
    settling = Settling(rows, length, settings.stability_threshold, settings.confidence_threshold)
    settled, steps = np.zeros(rows, np.bool_), np.zeros(rows, np.int64)
    logits, result = None, canvas
    for step in range(count):
        heat = sampler.temperature(step, count, settings.t_max, settings.t_min)
        look = model.denoise(canvas, logits, np.full(rows, step > 0), heat, cache)
        _require_finite(look, settled, heat)
        for_token, for_noise = sampler.chances(seeds, block, step, length)
        taken = sampler.accepted(look.entropy, settings.entropy_bound)
        tokens = sampler.drawn(look.top_probabilities, look.top_tokens, for_token)
        canvas = np.where(taken, tokens, sampler.tokens_of(for_noise, model.vocab_size))
        logits, result = look.logits, np.where(settled[:, None], result, look.argmax)
        steps += ~settled
        settled = settled | settling(look.argmax, look.entropy)
        draft = BlockDraft(block=block, step=step + 1, argmax=result, written=written, accepted=taken, settled=settled)
        on_draft(draft)
        if settled.all():
            break
    return result, steps


def _require_finite(look: CanvasLook, settled: Yes, heat: float) -> None:
    """Refuse to draw from what is no number: NaN has a likeliest token, too. Of settled rows nothing is drawn."""
    bad = np.flatnonzero(~np.isfinite(look.entropy).all(axis=1) & ~settled)
    if not len(bad):
        return
    rows = len(settled)
    which = "the text" if rows == 1 else f"{'text' if len(bad) == 1 else 'texts'} {', '.join(map(str, bad))} of {rows}"
    cold = (f"the temperature {heat:.3g} (try a higher one)",) if heat < _COLD else ()
    suspects = (*cold, "bfloat16, where that is the dtype (try float32)", "a weight of the checkpoint (fetch it again)")
    counted = "" if rows == 1 else ", counted from 0,"
    raise NotFiniteError(f"{which}{counted} came out as NaN or infinity instead of words", (), suspects)
