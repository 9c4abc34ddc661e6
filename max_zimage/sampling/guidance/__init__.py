"""Guidance as data: which branches a picture has beside that of its prompt, and how much each counts when.

A file each for what is linear, prediction = positive + sum of scale · (positive - branch). `combined` puts together
what a request asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.evaluations import Evaluations

FloatArray = npt.NDArray[np.float32]
Caption = Literal["positive", "negative"]
VariantName = Literal["cfg", "cfg_zero_star", "apg"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """One way to see a picture, beside the one under its prompt.

    Attributes:
        caption: Under its prompt or under its negative prompt.
        scales: float32 [evaluations], what its difference from the positive branch counts; 0 leaves the branch out of
            an evaluation.
        skipped: Main layers that are left out of it.
    """

    caption: Caption
    scales: FloatArray
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How the positive and the negative branch make a prediction; see `max_zimage.graphs.guiders.variants`.

    Attributes:
        name: "cfg", "cfg_zero_star" or "apg".
        zero_init: Whether the first evaluation predicts nothing; of CFG-Zero*.
        eta: What of the part along the positive branch stays; of APG.
        momentum: What of the differences before is added; of APG.
        norm_threshold: Limit of the difference's norm, 0 for none; of APG.
        rescale: How far the prediction's spread becomes that of the positive branch, from 0 to 1; of all.
    """

    name: VariantName = "cfg"
    zero_init: bool = False
    eta: float = 1.0
    momentum: float = 0.0
    norm_threshold: float = 0.0
    rescale: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether the compiled step's own guidance does it."""
        return self.name == "cfg" and not self.rescale


@dataclass(frozen=True, kw_only=True, eq=False)
class Nag:
    """Normalized attention guidance: the negative branch acts inside attention, and has no velocity of its own.

    See `max_zimage.graphs.model.normalized_attention`.

    Attributes:
        active: Bool [evaluations], those that it is part of.
        scale: How far from the negative branch.
        tau: How much larger a token may become.
        alpha: What of the guided token counts, beside the positive branch's.
    """

    active: npt.NDArray[np.bool_]
    scale: float
    tau: float
    alpha: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Guidance:
    """All branches of a request.

    Attributes:
        negative: float32 [evaluations], the scale of classifier-free guidance; 0 for none.
        cfg_normalization: Limit of the prediction's norm as a share of the positive branch's; 0 for none.
        others: Branches on top of that.
        variant: How they make a prediction.
        nag: Normalized attention guidance, in the place of classifier-free guidance; or None.
    """

    negative: FloatArray
    cfg_normalization: float
    others: tuple[Branch, ...] = ()
    variant: Variant = Variant()
    nag: Nag | None = None

    @property
    def has_negative(self) -> bool:
        """Whether any evaluation has a negative branch."""
        return bool((self.negative > 0).any()) or (self.nag is not None and bool(self.nag.active.any()))

    def is_paired(self, evaluation: int) -> bool:
        """Whether the negative branch of an evaluation acts inside attention."""
        return self.nag is not None and bool(self.nag.active[evaluation])

    @property
    def limits(self) -> FloatArray:
        """float32 [evaluations]; without guidance the prediction is the positive branch itself: nothing limits it."""
        return np.where(self.negative > 0, np.float32(self.cfg_normalization), np.float32(0))

    def active(self, evaluation: int) -> tuple[int, ...]:
        """The branches of an evaluation: 0 is the positive one, 1 the negative one, others follow."""
        others = [2 + index for index, branch in enumerate(self.others) if branch.scales[evaluation]]
        has_negative = self.negative[evaluation] > 0 or self.is_paired(evaluation)
        return (0, *([1] if has_negative else []), *others)

    def kept(self, refiners: int, layers: int) -> FloatArray:
        """float32 [variants, refiners + layers]: the first variant has all blocks, each other one leaves out its own.

        Raises:
            ValueError: If a branch leaves out a layer that is not there, or all of them.
        """
        table = np.ones((1 + len(self.others), refiners + layers), np.float32)
        for variant, branch in enumerate(self.others, 1):
            outside = [layer for layer in branch.skipped if not 0 <= layer < layers]
            if outside or len(set(branch.skipped)) == layers:
                raise ValueError(f"layers to skip must be some of 0 to {layers - 1}, got {list(branch.skipped)}")
            table[variant, [refiners + layer for layer in branch.skipped]] = 0
        return table


def combined(guidance: Guidance, branches: Sequence[Branch]) -> Guidance:
    """Guidance with further branches.

    Raises:
        ValueError: If a branch has scales for another number of evaluations.
    """
    wrong = [len(each.scales) for each in branches if len(each.scales) != len(guidance.negative)]
    if wrong:
        raise ValueError(f"a branch must have a scale for each of {len(guidance.negative)} evaluations, got {wrong[0]}")
    return replace(guidance, others=(*guidance.others, *branches))


def within(plan: Evaluations, start: float, stop: float) -> npt.NDArray[np.bool_]:
    """Bool [evaluations], those whose step has start <= step / steps < stop; 1 is the end of the last step."""
    return np.asarray((start <= plan.shares) & (plan.shares < stop))
