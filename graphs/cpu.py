"""What this machine's processor can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_LISTS = ("flags", "Features")  # what Linux calls the list on x86-64 and on Arm


@cache
def instructions() -> frozenset[str]:
    """Names of the processor's instruction sets as Linux has them, e.g. "avx512_bf16"; none where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith(_LISTS)), "").split())
