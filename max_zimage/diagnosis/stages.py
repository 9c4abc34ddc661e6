"""The stages of a picture that are compared, what a fault in each points to, and how far apart they may be.

    tokens -> features -> schedule -> caption tokens -> first block -> velocity -> latents -> pixels

Each stage is given what the reference made of the stages before it, on both sides. So a fault shows in its own stage,
and several are found at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from max_zimage.device.dtypes import ModelDtype
from max_zimage.diagnosis.tolerances import BFLOAT16_RATIO, FINER, GPU_FLOAT32_L2, SCHEDULE_L2, STAGES_L2
from max_zimage.diagnosis.tolerances import USUAL_BFLOAT16_L2 as USUAL

Array = npt.NDArray[Any]
Values = Mapping[str, Array]
"""Stage -> its value."""

_TF32 = 0.25
"""What an accelerator may lose in float32 of what bfloat16 loses: TF32 has three bits more, and twice that is taken."""


_NEARLY = 1.1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of them.

    Attributes:
        name: What it is called.
        tolerance: Its name in `tolerances.STAGES_L2`; None for the schedule.
        has_dtype: Whether its numbers depend on the dtype that the model runs in.
        points_to: Where to look if it is the first one that fails.
    """

    name: str
    tolerance: str | None
    has_dtype: bool = True
    points_to: str


STAGES = (
    Stage(
        name="tokens",
        tolerance="tokens",
        has_dtype=False,
        points_to="the tokenizer's files: chat template (chat_template.jinja, tokenizer_config.json) or vocabulary "
        "(tokenizer.json)",
    ),
    Stage(
        name="features",
        tolerance="features",
        points_to="the text encoder: its weights, or rope_theta, heads and norms in text_encoder/config.json",
    ),
    Stage(
        name="schedule",
        tolerance=None,
        has_dtype=False,
        points_to="scheduler/scheduler_config.json: shift, dynamic shift, or another scheduler",
    ),
    Stage(
        name="caption tokens",
        tolerance="block",
        points_to="the transformer's cap_embedder, cap_pad_token or context_refiner",
    ),
    Stage(
        name="first block",
        tolerance="block",
        points_to="the transformer's x_embedder, t_embedder, x_pad_token, noise_refiner.0 or all_final_layer, or its "
        "positions (rope_theta, axes_dims)",
    ),
    Stage(
        name="velocity",
        tolerance="prediction",
        points_to="the transformer's blocks behind the first one",
    ),
    Stage(
        name="latents",
        tolerance="step",
        points_to="guidance or the update of a step, where the stages before it hold; else what they point to",
    ),
    Stage(
        name="pixels",
        tolerance="pixels",
        points_to="the autoencoder: its weights, or scaling_factor and shift_factor in vae/config.json",
    ),
)
"""In the order of computation."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One stage of the engine beside that of the reference.

    Attributes:
        stage: Its name.
        engine: The engine's dtype.
        reference: The reference's dtype.
        relative_l2: Norm of the difference as a share of the reference's norm.
        max_relative: The largest difference as a share of the reference's largest number.
        bound: What `relative_l2` may be.
        problem: Why there is nothing to compare, in words; empty if there is.
    """

    stage: str
    engine: ModelDtype
    reference: ModelDtype
    relative_l2: float
    max_relative: float
    bound: float
    problem: str = ""

    @classmethod
    def of(
        cls, stage: Stage, ours: Array, theirs: Array, bound: float, pair: tuple[ModelDtype, ModelDtype]
    ) -> Comparison:
        """Compare two arrays; of unequal shape everything is infinitely far."""
        names: dict[str, Any] = {"stage": stage.name, "engine": pair[0], "reference": pair[1], "bound": bound}
        if ours.shape != theirs.shape:
            said = f"{_shape(ours)} numbers here, {_shape(theirs)} in diffusers"
            return cls(**names, relative_l2=float("inf"), max_relative=float("inf"), problem=said)
        with np.errstate(all="ignore"):
            difference = np.abs(ours.astype(np.float64) - theirs)
            largest = difference.max() / np.abs(theirs.astype(np.float64)).max()
        return cls(**names, relative_l2=relative_l2(ours, theirs), max_relative=float(largest))

    @property
    def holds(self) -> bool:
        """Whether it is within its bound; a value that is no number is not."""
        return self.relative_l2 <= self.bound


def relative_l2(actual: Array, expected: Array) -> float:
    """Norm of the difference as a share of the expected norm, in float64; 0 for two that are zero."""
    with np.errstate(all="ignore"):
        difference = np.linalg.norm((actual.astype(np.float64) - expected).ravel())
        return float(difference / np.linalg.norm(expected.astype(np.float64).ravel())) if difference else 0.0


def bound(stage: Stage, engine: ModelDtype, reference: ModelDtype, loses: float | None, *, on_host: bool) -> float:
    """What a stage's relative L2 may be.

    Args:
        stage: The stage.
        engine: The engine's dtype.
        reference: The reference's.
        loses: Relative L2 of the reference in bfloat16 to itself in float32; None where one of them was not run.
        on_host: Whether the engine runs on a CPU.
    """
    if stage.tolerance is None:
        return SCHEDULE_L2
    exact = STAGES_L2[stage.tolerance]
    if not stage.has_dtype:
        return exact
    if loses is None and "bfloat16" in (engine, reference):
        return USUAL[stage.tolerance]
    lost = loses or 0.0
    if not on_host:
        exact = max(exact, GPU_FLOAT32_L2)
    scaled = lost * (FINER if on_host else _TF32)
    ours = max(exact, scaled) if engine == "float32" else BFLOAT16_RATIO * lost + exact
    # Both differences are shares of norms that differ a little themselves.
    return ours + (_NEARLY * lost if reference == "bfloat16" else 0.0)


def lost_in_bfloat16(stage: Stage, references: Mapping[ModelDtype, Values]) -> float | None:
    """What the reference loses in bfloat16; None where one of the two dtypes was not run."""
    if len(references) < 2:
        return None
    rounded, exact = references["bfloat16"][stage.name], references["float32"][stage.name]
    return relative_l2(rounded, exact) if rounded.shape == exact.shape else None


def _shape(array: Array) -> str:
    return "x".join(map(str, array.shape))
