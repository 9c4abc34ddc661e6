"""What this machine's processor can do, and which of the ways that it has graphs multiply bfloat16 in.

    pairs:   two products of bfloat16 numbers and their sum in one instruction (AVX-512 BF16)
    widened: rows become float32 once a call, weights in registers; every processor can
    tiles:   sixteen rows by sixteen columns of 32 numbers in one instruction (AMX)

Which is faster depends on the processor: some have the first at half the rate of their float32 products.
`max_zimage.compile.inner_loops` measures it. Where it is tiles, plain and gated layers alone have them, the others have
pairs. Products with quantized weights, an embedding as the end of a network, attention and convolutions have one way.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Literal

InnerLoop = Literal["pairs", "widened", "tiles"]
NEEDS: Mapping[InnerLoop, str] = {"pairs": "avx512_bf16", "tiles": "amx_bf16"}
"""The instructions that a way consists of, as Linux names them."""

_LISTS = ("flags", "Features")  # what Linux calls the list on x86-64 and on Arm
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64
_multiplying: ContextVar[InnerLoop] = ContextVar("_multiplying", default="pairs")


@cache
def instructions() -> frozenset[str]:
    """Names of the processor's instruction sets as Linux has them, e.g. "avx512_bf16"; none where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith(_LISTS)), "").split())


@cache
def inner_loops() -> tuple[InnerLoop, ...]:
    """The ways that this processor has, and that Linux lets this process go."""
    there = instructions()
    pairs: tuple[InnerLoop, ...] = ("pairs",) if NEEDS["pairs"] in there else ()
    tiles: tuple[InnerLoop, ...] = ("tiles",) if NEEDS["tiles"] in there and _may_use_tiles() else ()
    return (*pairs, "widened", *tiles)


def _may_use_tiles() -> bool:
    """Ask Linux for the registers of AMX, which it gives a process that asks, for all its threads and from then on."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    ask = ctypes.CDLL(None).syscall
    return ask(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_ARCH_REQ_XCOMP_PERM), ctypes.c_long(_TILE_DATA)) == 0


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
