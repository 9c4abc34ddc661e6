"""Kernels in artifacts: read from an object that is made here, and from what MAX compiles for a GPU."""

from __future__ import annotations

import json
import struct

import pytest

from max_zimage import cli
from max_zimage.cubins import Symbol, symbol_lines, symbols_in


def an_object(kernels: dict[str, tuple[int, int, int]], machine: int = 190) -> bytes:
    """An ELF object with kernels, of registers, stack and shared bytes each, and a function that no kernel is."""
    names = ["", "helper", *kernels]
    strings = b"\0".join(name.encode() for name in names) + b"\0"
    starts = [strings.index(b"\0" + name.encode() + b"\0") + 1 if name else 0 for name in names]
    symbols = b"".join(struct.pack("<IBBHQQ", start, 0, 0, 0, 0, 0) for start in starts)
    info = struct.pack("<BBH", 3, 0x50, 0) + struct.pack("<BBHII", 4, 0x2F, 8, 1, 99)
    for index, (registers, stack, _) in enumerate(kernels.values(), 2):
        info += struct.pack("<BBHII", 4, 0x2F, 8, index, registers) + struct.pack("<BBHII", 4, 0x12, 8, index, stack)
    parts = [("", 0, b""), (".strtab", 3, strings), (".symtab", 2, symbols), (".nv.info", 0x70000000, info)]
    parts += [(f".nv.info.{name}", 0x70000000, b"\4\x17\0\0") for name in kernels]
    parts += [(f".nv.shared.{name}", 8, b"\0" * shared) for name, (_, _, shared) in kernels.items() if shared]
    titles = b"\0".join(name.encode() for name, _, _ in parts) + b"\0.shstrtab\0"
    parts.append((".shstrtab", 3, titles))
    content, headers = b"", b""
    for name, kind, data in parts:
        start = 0 if not name else titles.index(b"\0" + name.encode() + b"\0") + 1
        headers += struct.pack("<IIQQQQIIQQ", start, kind, 0, 0, 64 + len(content), len(data), 1, 0, 0, 0)
        content += data
    numbers = (2, machine, 1, 0, 0, 64 + len(content), 0, 0, 0, 0, 64, len(parts), len(parts) - 1)
    header = struct.pack("<4s4B8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, *numbers)
    return header + content + headers


def test_reading() -> None:
    first = an_object({"sm90_mha_0c868f48": (168, 0, 0), "naive": (255, 48, 1040)})
    second = an_object({"sm90_mha_26d82dcd": (168, 0, 0)})
    host = an_object({"of_the_host": (1, 1, 1)}, machine=62)
    found = symbols_in(b"MEF" + host + first + b"\x7fELF" + second + first + b"\x7fELF\2\1")
    assert found == (
        Symbol(name="naive", instance="", registers=255, stack=48, shared=1040),
        Symbol(name="sm90_mha", instance="0c868f48", registers=168, stack=0, shared=0),
        Symbol(name="sm90_mha", instance="26d82dcd", registers=168, stack=0, shared=0),
    )
    assert list(symbol_lines(found)) == [
        "## in the machine code: 3 kernels",
        "naive: 255 registers, 48 bytes of stack, 1040 shared",
        "sm90_mha: 168 registers, 0 bytes of stack, 0 shared  x 2",
    ]
    assert symbols_in(first[:-1]) == symbols_in(b"") == ()


@pytest.mark.targets
def test_a_graph_is_listed_and_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compile", "--target", "cuda:sm_90a", "--graphs", "pack", "--list-kernels", "--symbols"]
    assert cli.main([*command, "--json"]) == 0
    (graph,) = json.loads(capsys.readouterr().out)["graphs"]
    assert (graph["error"], graph["kernels"]["total"]) == (None, 1)
    assert graph["symbols"]
    for symbol in graph["symbols"]:
        assert symbol["name"].startswith("mogg_foreach")  # no kernel of a graph that was compiled before
        assert 16 <= symbol["registers"] <= 255
        assert symbol["stack"] == 0
