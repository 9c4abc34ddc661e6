"""AMX's instructions for tiles of bfloat16 numbers, done by hand where the processor has not got them.

    with AmxEmulator() as amx:
        library.call(…)
    amx.counts["tdpbf16ps"]

A processor that does not know an instruction raises, and Linux sends SIGILL; the handler here reads which one it was,
does it in numpy, and goes on behind it. So what runs is the machine code itself: addresses, strides, tiles and order.

Source: Intel's Software Developer's Manual, volume 2, chapters on VEX prefixes, LDTILECFG, TILELOADD, TDPBF16PS,
TILESTORED, TILEZERO and TILERELEASE; registers of a context from glibc's sys/ucontext.h.
"""

from __future__ import annotations

import ctypes
import signal
from collections import Counter
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Tile = NDArray[np.uint8]  # [rows, bytes of a row]

_REGISTERS = (13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7)  # where a context has rax, rcx, rdx, rbx, …
_NEXT = 16  # where it has the instruction's address
_CONTEXT = 40  # bytes before a context's registers
_LONGEST = 15  # bytes of an instruction
_SA_SIGINFO = 4
_NAMES = {(0x49, 0): "ldtilecfg", (0x49, 3): "tilezero", (0x4B, 3): "tileloadd", (0x4B, 2): "tilestored"}
_NAMES |= {(0x5C, 2): "tdpbf16ps"}

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


class Instruction(NamedTuple):
    """One of AMX's.

    Attributes:
        name: In assembler.
        length: In bytes.
        first: The tile that is written, or stored.
        second: The tile of rows.
        third: The tile of columns.
        base: Number of the register with an address; None for what touches no memory.
        stride: Number of the register with a stride in bytes, if there is one.
        offset: In bytes.
    """

    name: str
    length: int
    first: int
    second: int
    third: int
    base: int | None
    stride: int | None
    offset: int


def decoded(code: bytes) -> Instruction:
    """What an instruction is.

    Raises:
        ValueError: If it is none of AMX's, or in a form that the kernels have no use for.
    """
    prefix, one, two, opcode, fields = code[:5]
    name = _NAMES.get((opcode, two & 3))
    if prefix != 0xC4 or one & 31 != 2 or two & 0x84 or name is None:
        raise ValueError(f"no instruction of AMX's: {code.hex(' ')}")
    mode, register, other = fields >> 6, fields >> 3 & 7, fields & 7
    if mode == 3:
        if name == "ldtilecfg":
            name = "tilerelease"
        return Instruction(name, 5, register, other, 15 - (two >> 3 & 15), None, None, 0)
    high_base, high_index = 8 * (not one & 0x20), 8 * (not one & 0x40)
    length, base, index = 5, other + high_base, None
    if other == 4:
        length, base = 6, (code[5] & 7) + high_base
        index = (code[5] >> 3 & 7) + high_index
        if code[5] >> 6 or index == 4:
            raise ValueError(f"an address of another form: {code.hex(' ')}")
    if mode == 0 and base & 7 == 5:
        raise ValueError(f"an address without a register: {code.hex(' ')}")
    size = (0, 1, 4)[mode]
    offset = int.from_bytes(code[length : length + size], "little", signed=True)
    return Instruction(name, length + size, register, 0, 0, base, index, offset)


class AmxEmulator:
    """Does AMX's instructions for this process while it is entered.

    Attributes:
        counts: How often each was done, by its name.
        error: What was wrong with the first that was; tiles are then as they were.
        is_released: Whether no tiles are set up.
    """

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.error: str | None = None
        self.is_released = True
        self._tiles: list[Tile] = []
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handler = _Handler(self._handle)  # kept, for C has its address alone
        self._before = _Action()

    def __enter__(self) -> Self:
        ours = _Action(handler=ctypes.cast(self._handler, ctypes.c_void_p).value, flags=_SA_SIGINFO)
        assert self._libc.sigaction(signal.SIGILL, ctypes.byref(ours), ctypes.byref(self._before)) == 0
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        assert self._libc.sigaction(signal.SIGILL, ctypes.byref(self._before), None) == 0

    def _handle(self, _signal: int, _info: int, context: int) -> None:
        registers = (ctypes.c_int64 * 23).from_address(context + _CONTEXT)
        try:
            instruction = decoded(ctypes.string_at(registers[_NEXT], _LONGEST))
        except ValueError:
            self._restore()  # it is raised again, and ends as it would have
            return
        try:
            self._do(instruction, registers)
        except Exception as error:  # there is nobody to raise it to
            self.error = self.error or f"{instruction}: {error}"
        self.counts[instruction.name] += 1
        registers[_NEXT] += instruction.length

    def _do(self, instruction: Instruction, registers: Any) -> None:
        address = instruction.offset
        if instruction.base is not None:
            address += registers[_REGISTERS[instruction.base]]
        if instruction.name == "ldtilecfg":
            self._tiles = _tiles(ctypes.string_at(address, 64))
            self.is_released = False
            return
        if self.is_released:
            raise ValueError("tiles are not set up")
        stride = 0 if instruction.stride is None else registers[_REGISTERS[instruction.stride]]
        first = self._tiles[instruction.first]
        match instruction.name:
            case "tilerelease":
                self.is_released = True
            case "tilezero":
                first[:] = 0
            case "tileloadd":
                for i, row in enumerate(first):
                    row[:] = np.frombuffer(ctypes.string_at(address + i * stride, row.size), np.uint8)
            case "tilestored":
                for i, row in enumerate(first):
                    ctypes.memmove(address + i * stride, row.tobytes(), row.size)
            case "tdpbf16ps":
                _add_products(first, self._tiles[instruction.second], self._tiles[instruction.third])


def _tiles(settings: bytes) -> list[Tile]:
    """Zeros in the sizes that LDTILECFG is given, of palette 1: eight tiles of at most 16 rows of 64 bytes."""
    widths, rows = np.frombuffer(settings, np.uint16, 8, 16), np.frombuffer(settings, np.uint8, 8, 48)
    reserved = settings[2:16] + settings[32:48] + settings[56:]
    if settings[:2] != b"\1\0" or any(reserved) or widths.max() > 64 or rows.max() > 16:
        raise ValueError(f"settings that raise a general protection fault: {settings.hex(' ')}")
    return [np.zeros((height, width), np.uint8) for height, width in zip(rows, widths, strict=True)]


def _add_products(sums: Tile, rows: Tile, columns: Tile) -> None:
    """Even and odd numbers of pairs are summed apart, one pair after the other, then added: once each rounded.

    A product of two bfloat16 numbers is exact in float32.
    """
    left, right = _numbers(rows), _numbers(columns)  # [rows, pairs, 2], [pairs, columns, 2]
    if left.shape[1] != right.shape[0] or sums.shape != (left.shape[0], 4 * right.shape[1]):
        raise ValueError(f"tiles of sizes that do not fit: {sums.shape}, {rows.shape}, {columns.shape}")
    added = np.zeros((left.shape[0], right.shape[1], 2), np.float32)
    for pair in range(left.shape[1]):
        added += left[:, pair, None] * right[None, pair]
    sums.view(np.float32)[:] += added[..., 0] + added[..., 1]


def _numbers(tile: Tile) -> NDArray[np.float32]:
    """A tile's bfloat16 numbers, two and two."""
    wide = tile.view(np.uint16).astype(np.uint32) << 16
    return wide.view(np.float32).reshape(len(tile), -1, 2)
