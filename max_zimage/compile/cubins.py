"""Kernels in a compiled graph's artifact: one ELF object of NVIDIA's for each, with its name and what it needs.

Reference: the ELF format's header, section and symbol tables; NVIDIA's cuobjdump for what its sections hold.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_HEADER = struct.Struct("<4s4B8xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_ATTRIBUTE = struct.Struct("<BBH")
_MAGIC, _CUDA, _SYMBOLS = b"\x7fELF", 190, 2
_WITH_SIZE, _REGISTERS, _STACK = 4, 0x2F, 0x12
_DIGITS = re.compile(r"(?<=mojo_pkg)_[0-9a-f]+(?:_[0-9a-f]+)?$|_[0-9a-f]{8,16}$")


@dataclass(frozen=True, kw_only=True, order=True)
class Symbol:
    """One kernel.

    Attributes:
        name: As MAX has named it, without the digits that tell instances apart; those of `kernels` are "mojo_pkg".
        instance: These digits; empty if it has none.
        registers: Of a thread.
        stack: Bytes of a thread, what does not fit into registers included.
        shared: Bytes of a block that are known when it is compiled.
    """

    name: str
    instance: str
    registers: int
    stack: int
    shared: int


class _Section(NamedTuple):
    name: str
    kind: int
    link: int
    size: int
    data: bytes


def symbols_in(artifact: bytes) -> tuple[Symbol, ...]:
    """All kernels of an artifact, by name."""
    found: set[Symbol] = set()
    place = artifact.find(_MAGIC)
    while place >= 0:
        found.update(_kernels(artifact, place))
        place = artifact.find(_MAGIC, place + 1)
    return tuple(sorted(found))


def symbol_lines(symbols: Sequence[Symbol]) -> Iterator[str]:
    """Kernels as text: their names without the digits, equal ones once."""
    yield f"## in the machine code: {len(symbols)} kernel{'s' * (len(symbols) != 1)}"
    each = Counter((symbol.name, symbol.registers, symbol.stack, symbol.shared) for symbol in symbols)
    for (name, registers, stack, shared), count in sorted(each.items()):
        needs = f"{registers} registers, {stack} bytes of stack, {shared} shared"
        yield f"{name}: {needs}{f'  x {count}' if count > 1 else ''}"


def _kernels(artifact: bytes, place: int) -> Iterator[Symbol]:
    """The kernels of an object, if one of NVIDIA's begins there."""
    sections = _sections(artifact, place)
    info = next((section.data for section in sections if section.name == ".nv.info"), b"")
    table = next((section for section in sections if section.kind == _SYMBOLS), None)
    if table is None:
        return
    symbols = _names(table.data, sections[table.link].data)
    numbers = _numbers(info)
    shared = {section.name: section.size for section in sections}
    for index, name in enumerate(symbols):
        if name and f".nv.info.{name}" in shared:  # an entry, not a function that one calls
            digits = _DIGITS.search(name)
            yield Symbol(
                name=name[: digits.start()] if digits else name,
                instance=digits[0][1:] if digits else "",
                registers=numbers[_REGISTERS][index],
                stack=numbers[_STACK][index],
                shared=shared.get(f".nv.shared.{name}", 0),
            )


def _sections(artifact: bytes, place: int) -> list[_Section]:
    """Sections of the object that begins there; none if it is for another machine or no object."""
    if place + _HEADER.size > len(artifact):
        return []
    _, bits, order, *_, machine, _, _, _, start, _, _, _, _, _, count, names = _HEADER.unpack_from(artifact, place)
    if (bits, order, machine) != (2, 1, _CUDA) or place + start + count * _SECTION.size > len(artifact):
        return []
    headers = [_SECTION.unpack_from(artifact, place + start + index * _SECTION.size) for index in range(count)]
    data = [artifact[place + header[4] : place + header[4] + header[5]] for header in headers]
    return [
        _Section(_string(data[names], header[0]), header[1], header[6], header[5], content)
        for header, content in zip(headers, data, strict=True)
    ]


def _names(table: bytes, strings: bytes) -> list[str]:
    return [_string(strings, symbol[0]) for symbol in _SYMBOL.iter_unpack(table)]


def _string(strings: bytes, start: int) -> str:
    return strings[start : strings.index(b"\0", start)].decode()


def _numbers(info: bytes) -> dict[int, dict[int, int]]:
    """Attribute -> index of a symbol -> number."""
    numbers: dict[int, dict[int, int]] = {_REGISTERS: {}, _STACK: {}}
    place = 0
    while place < len(info):
        form, attribute, size = _ATTRIBUTE.unpack_from(info, place)
        place += _ATTRIBUTE.size
        if form == _WITH_SIZE:
            if attribute in numbers:
                symbol, number = struct.unpack_from("<II", info, place)
                numbers[attribute][symbol] = number
            place += size
    return numbers
