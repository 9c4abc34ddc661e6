"""What results call the processor."""

from __future__ import annotations

from max_zimage.graphs.cpu import instructions
from max_zimage.host.processor import processor

_WIDEST = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""Linux's names of instruction sets that multiply -> what they are called here; the first that is there is said."""


def processor_and_instructions() -> str:
    """Of this machine, e.g. "AMD EPYC (AVX2)": many models share a name and multiply at very different rates."""
    widest = next((f" ({said})" for flag, said in _WIDEST.items() if flag in instructions()), "")
    return processor() + widest
