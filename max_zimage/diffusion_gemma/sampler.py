"""How a canvas settles: what is drawn, what is accepted, what becomes noise again, and when it is done.

Pure numpy, row by row alike. A row's numbers are those of its own seed and of nothing else, so that a text does not
depend on what is written beside it.

Every random number of a text is one of `max_zimage.sampling.noise.uniform`, with the text's seed and a stream of its
own for each canvas b and step s, 2**63 + b * 2**32 + s. Step 0 is the first noise of a canvas: one number a position.
Others take two, for the token that is drawn and for the one that stands there if it is not accepted.

Reference: transformers models/diffusion_gemma/generation_diffusion_gemma.py, EntropyBoundSampler,
LinearTemperatureScheduleLogitsProcessor and StableAndConfidentStoppingCriteria; entropy-bounded unmasking is from
arXiv 2505.24857.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from max_zimage.diffusion_gemma.steps import Ids
from max_zimage.sampling.noise import uniform

Units = NDArray[np.float64]
Yes = NDArray[np.bool_]

_OF_TEXTS = 2**63
"""First stream of texts: below it are those of pictures, which may have the same seed."""
_CANVASES = 2**32


def temperature(step: int, steps: int, t_max: float, t_min: float) -> float:
    """What logits are divided by in a step; the first has `t_max` exactly, and none has `t_min`.

    Args:
        step: From 0.
        steps: Most of a canvas.
        t_max: Of the first step.
        t_min: That a step behind the last would have.
    """
    return t_min + (t_max - t_min) * ((steps - step) / steps)


def first_noise(seeds: Sequence[int], block: int, length: int, vocabulary: int) -> Ids:
    """Canvases of random tokens, int64 [rows, length]."""
    return tokens_of(np.stack([uniform(seed, (length,), _stream(block, 0)) for seed in seeds]), vocabulary)


def chances(seeds: Sequence[int], block: int, step: int, length: int) -> tuple[Units, Units]:
    """Numbers of a step, counted from 0: for what is drawn and for noise, float64 [rows, length] in [0, 1) each."""
    found = np.stack([uniform(seed, (2, length), _stream(block, step + 1)) for seed in seeds])
    return found[:, 0], found[:, 1]


def _stream(block: int, step: int) -> int:
    return _OF_TEXTS + block * _CANVASES + step


def tokens_of(units: Units, vocabulary: int) -> Ids:
    """Tokens of the whole vocabulary, each as likely."""
    return np.floor(units * vocabulary).astype(np.int64)


def drawn(probabilities: NDArray[np.float32], tokens: Ids, units: Units) -> Ids:
    """Draw a token of each position by its probability, among the likeliest.

    Args:
        probabilities: float32 [rows, length, top], falling, of which the rest of the vocabulary is left out.
        tokens: int64, of the same shape.
        units: float64 [rows, length] in [0, 1).

    Returns:
        int64 [rows, length].
    """
    reached = np.cumsum(probabilities, axis=-1, dtype=np.float64)
    place = (reached <= (units * reached[..., -1])[..., None]).sum(axis=-1)
    # A unit just below 1 may be rounded to the whole sum.
    place = np.minimum(place, probabilities.shape[-1] - 1)
    return np.take_along_axis(tokens, place[..., None], axis=-1)[..., 0]


def accepted(entropy: NDArray[np.float32], bound: float) -> Yes:
    """Which positions are taken: the surest, as long as those surer than each have no more than the bound together.

    Args:
        entropy: float32 [rows, length], natural logarithm.
        bound: Above 0. The surest position is always accepted, and so is the first one that goes beyond the bound.

    Returns:
        bool [rows, length].
    """
    order = np.argsort(entropy, axis=-1, kind="stable")
    rising = np.take_along_axis(entropy, order, axis=-1).astype(np.float64)
    within = np.cumsum(rising, axis=-1) - rising <= bound
    taken = np.zeros(entropy.shape, np.bool_)
    np.put_along_axis(taken, order, within, axis=-1)
    return taken


class Settling:
    """Whether canvases have settled: their likeliest tokens stay, and the model is sure of them.

    Args:
        rows: Canvases.
        length: Tokens of each.
        stability: For how many steps before the likeliest tokens must have been the same; 0 asks for none.
        confidence: Below which the mean entropy of a canvas must be.
    """

    def __init__(self, rows: int, length: int, stability: int, confidence: float) -> None:
        self._before = np.full((stability, rows, length), -1, np.int64)
        self._confidence = confidence

    def __call__(self, argmax: Ids, entropy: NDArray[np.float32]) -> Yes:
        """Which rows have settled with this step, bool [rows].

        Args:
            argmax: int64 [rows, length].
            entropy: float32 [rows, length].
        """
        stable = (self._before == argmax).all(axis=-1).all(axis=0)
        if len(self._before):
            self._before = np.concatenate([self._before[1:], argmax[None]])
        confident = entropy.mean(axis=-1, dtype=np.float64) < self._confidence
        return np.asarray(stable & confident)


def up_to_end(ids: Ids, ends: Sequence[int], pad: int) -> tuple[Ids, Yes]:
    """Replace what follows the first end of each canvas by pad.

    Args:
        ids: int64 [rows, length].
        ends: Tokens that end a text, looked for in the whole canvas.
        pad: What stands behind them.

    Returns:
        int64 of the same shape; which rows have an end, bool [rows].
    """
    is_end = np.isin(ids, np.asarray(ends, np.int64))
    behind = (np.cumsum(is_end, axis=-1) - is_end) > 0
    return np.where(behind, pad, ids), np.asarray(is_end.any(axis=-1))
