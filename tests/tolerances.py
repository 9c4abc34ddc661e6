"""How far the engine may be from its references, and why."""

from __future__ import annotations

TRANSFORMER_L2 = 2e-6
"""Relative L2 of one float32 evaluation. Both sum the same products in other orders: 1e-7 a block, some blocks deep."""

GPU_FLOAT32_L2 = 2e-3
"""Relative L2 on an accelerator in float32, whose matrix products may round their factors to ten bits (TF32)."""

FEATURES_L2 = 2e-6
"""Relative L2 of the text encoder's features in float32, as above."""

ENCODER_L2 = 1e-5
"""Relative L2 of the autoencoder's float32 latents: its group norms and 3x3 convolutions sum far more products."""

PIXEL_SHARE = 0.999
"""Share of a picture's values that equal the reference's to within one level."""

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
"""Relative L2 of the stages of a picture, by name."""

RECORDED_L2 = 1e-4
"""Relative L2 of final latents between processors: 2e-6 of noise after every step makes 2.3e-5 of some requests."""

SAMPLED_L2 = 5e-6
"""Relative L2 of final latents under a sampler: a few evaluations, each as near as `TRANSFORMER_L2`."""

EXACT_TILES_SHARE = 1e-3
"""Share of bytes that are one level off where a decoder's statistics are put together of tiles': the same sums in
another order, 1e-7 of each number, which decides only beside a half."""
