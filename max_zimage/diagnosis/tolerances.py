"""How far the engine may be from diffusers, stage by stage, and why; tests go by the same numbers.

Reference: diffusers 0.42, on whose float32 numbers these bounds were found; see docs/verify.md.
"""

from __future__ import annotations

from collections.abc import Mapping

TRANSFORMER_L2 = 2e-6
"""Relative L2 of one float32 evaluation. Both sum the same products in other orders: 1e-7 a block, some blocks deep."""

FEATURES_L2 = 2e-6
"""Relative L2 of the text encoder's features in float32, as above."""

GPU_FLOAT32_L2 = 2e-3
"""Relative L2 on an accelerator in float32, whose matrix products may round their factors to ten bits (TF32)."""

BFLOAT16_RATIO = 2.0
"""Error against float32 as a multiple of torch's own bfloat16 error on the same case."""

STAGES_L2 = {
    "tokens": 0.0,
    "features": FEATURES_L2,
    "caption tokens": TRANSFORMER_L2,
    "block": TRANSFORMER_L2,
    "prediction": TRANSFORMER_L2,
    "step": 2e-5,  # guidance multiplies the difference of two predictions, and steps add up
    "pixels": 5e-4,  # one value in a thousand off by one level of some hundred
}
"""Relative L2 of the stages of a picture in float32 on a CPU, by name."""

SCHEDULE_L2 = 1e-6
"""Relative L2 of the noise levels: both round the same numbers to float32 once or twice."""

FINER = 2.0**-13
"""What float32 may lose of what torch loses in bfloat16: it rounds 2^16 times finer, and other orders of the same sums
may cost a few times that. So a checkpoint that is deeper than those the bounds were found on has wider ones."""

USUAL_BFLOAT16_L2: Mapping[str, float] = {
    "features": 0.05,
    "caption tokens": 0.05,
    "block": 0.05,
    "prediction": 0.05,
    "step": 0.1,
    "pixels": 0.025,
}
"""How far apart two sides may be, one or both in bfloat16, where float32 did not fit into memory and nothing tells what
bfloat16 loses. In the embedded model both are at most 0.0068, 0.0049, 0.0052, 0.0085, 0.020 and 0.0037 apart: a deeper
model has room for 5 to 10 times as much."""
