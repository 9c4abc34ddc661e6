"""How far the engine may be from its references, and why; `max-zimage verify` shares the first of these."""

from __future__ import annotations

from pathlib import Path

from max_zimage.diagnosis.tolerances import (
    BFLOAT16_RATIO,
    FEATURES_L2,
    GPU_FLOAT32_L2,
    STAGES_L2,
    TRANSFORMER_L2,
)

__all__ = [
    "BFLOAT16_RATIO",
    "DIFFUSION_GEMMA_CACHE_L2",
    "DIFFUSION_GEMMA_LOGITS_L2",
    "ENCODER_L2",
    "EXACT_TILES_SHARE",
    "FEATURES_L2",
    "GPU_FLOAT32_L2",
    "MESHED_L2",
    "MIXED_ADAPTERS_L2",
    "PIXEL_SHARE",
    "RECORDED_L2",
    "SAMPLED_L2",
    "STAGES_L2",
    "TRANSFORMER_L2",
]

DIFFUSION_GEMMA_CACHE_L2 = 5e-5
"""Relative L2 of keys and values of each layer of random weights, whose scalars and scales let differences grow."""

DIFFUSION_GEMMA_LOGITS_L2 = 1e-4
"""Relative L2 of processed logits of random weights: behind all layers, and over keys and values that are as far off as
above; 4.4e-5 to 8.9e-5 for three seeds of the weights on an AMD EPYC."""

ENCODER_L2 = 1e-5
"""Relative L2 of the autoencoder's float32 latents: its group norms and 3x3 convolutions sum far more products."""

MIXED_ADAPTERS_L2 = 5e-6
"""Relative L2 of latents with adapters beside the weights and in them: other sums of the same products in float32.
At most 2.1e-6 with a guidance of 3, which weighs what two evaluations differ by three times."""

PIXEL_SHARE = 0.999
"""Share of a picture's values that equal the reference's to within one level."""

RECORDED_L2 = 1e-4
"""Relative L2 of final latents between processors: 2e-6 of noise after every step makes 2.3e-5 of some requests."""

MESHED_L2 = 2e-6
"""Relative L2 of a step on several devices beside the plain one: the same numbers, whose sums over keys run in another
order and through another kernel of attention."""

_CPU = Path("/proc/cpuinfo")
_HAS_LONG_VECTORS = not _CPU.exists() or "avx512f" in _CPU.read_text(encoding="utf-8")
WALKED_L2 = 1e-5 if _HAS_LONG_VECTORS else 2e-5
"""Relative L2 of final latents beside a sampler's matrices in numpy: 4.7e-6 at most on an Intel Xeon, 5.4e-6 on an AMD
EPYC, 1.4e-5 on one without AVX-512, where sums run in another order; of a sampler that remembers, under guidance."""

SAMPLED_L2 = 5e-6
"""Relative L2 of final latents under a sampler: a few evaluations, each as near as `TRANSFORMER_L2`."""

EXACT_TILES_SHARE = 1e-3
"""Share of bytes that are one level off where a decoder's statistics are put together of tiles': the same sums in
another order, 1e-7 of each number, which decides only beside a half."""
