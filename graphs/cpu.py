"""What this machine's processor can do, and which of the ways that it has graphs multiply bfloat16 in.

    pairs:   two products of bfloat16 numbers and their sum in one instruction (AVX-512 BF16)
    widened: rows become float32 once a call, weights in registers; every processor can

Which is faster depends on the processor: some have the first at half the rate of their float32 products.
`max_zimage.compile.inner_loops` measures it. Products with quantized weights, an embedding as the end of a
network, attention and convolutions have one way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Literal

InnerLoop = Literal["pairs", "widened"]

_LISTS = ("flags", "Features")  # what Linux calls the list on x86-64 and on Arm
_PAIRS = "avx512_bf16"
_multiplying: ContextVar[InnerLoop] = ContextVar("_multiplying", default="pairs")


@cache
def instructions() -> frozenset[str]:
    """Names of the processor's instruction sets as Linux has them, e.g. "avx512_bf16"; none where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith(_LISTS)), "").split())


def inner_loops() -> tuple[InnerLoop, ...]:
    """The ways that this processor has."""
    return ("pairs", "widened") if _PAIRS in instructions() else ("widened",)


@contextmanager
def multiplying_by(loop: InnerLoop) -> Iterator[None]:
    """Have graphs that are traced inside multiply bfloat16 in this way, where the processor has it."""
    token = _multiplying.set(loop)
    try:
        yield
    finally:
        _multiplying.reset(token)


def inner_loop() -> InnerLoop:
    """What `multiplying_by` says here."""
    return _multiplying.get()
