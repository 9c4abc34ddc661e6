"""Kernels in artifacts: read from an object that is made here, and from what MAX compiles for a GPU."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence

import pytest

from max_zimage.cli.main import main
from max_zimage.compile.ahead_of_time import FULL_MODEL, compile_target
from max_zimage.compile.cubins import Symbol, symbol_lines, symbols_in
from tests.references.launches import PINNED, SYMBOLS, WITH_SYMBOLS, sections


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
    own = "mojo_pkg_28e4c1aeba59f8a175a9bfd_27fc50239cf4af3b"  # of the package, then of the kernel
    first = an_object({"sm90_mha_0c868f48": (168, 0, 0), "naive": (255, 48, 1040), own: (40, 0, 0)})
    second = an_object({"sm90_mha_26d82dcd": (168, 0, 0)})
    host = an_object({"of_the_host": (1, 1, 1)}, machine=62)
    found = symbols_in(b"MEF" + host + first + b"\x7fELF" + second + first + b"\x7fELF\2\1")
    assert found == (
        Symbol(name="mojo_pkg", instance="28e4c1aeba59f8a175a9bfd_27fc50239cf4af3b", registers=40, stack=0, shared=0),
        Symbol(name="naive", instance="", registers=255, stack=48, shared=1040),
        Symbol(name="sm90_mha", instance="0c868f48", registers=168, stack=0, shared=0),
        Symbol(name="sm90_mha", instance="26d82dcd", registers=168, stack=0, shared=0),
    )
    assert list(symbol_lines(found)) == [
        "## in the machine code: 4 kernels",
        "mojo_pkg: 40 registers, 0 bytes of stack, 0 shared",
        "naive: 255 registers, 48 bytes of stack, 1040 shared",
        "sm90_mha: 168 registers, 0 bytes of stack, 0 shared  x 2",
    ]
    assert symbols_in(first[:-1]) == symbols_in(b"") == ()


@pytest.mark.targets
def test_a_graph_is_listed_and_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compile", "--target", "cuda:sm_90a", "--graphs", "pack", "--list-kernels", "--symbols"]
    assert main([*command, "--json"]) == 0
    (graph,) = json.loads(capsys.readouterr().out)["graphs"]
    assert (graph["error"], graph["kernels"]["total"]) == (None, 1)
    assert graph["symbols"]
    for symbol in graph["symbols"]:
        assert symbol["name"].startswith("mogg_foreach")  # no kernel of a graph that was compiled before
        assert 16 <= symbol["registers"] <= 255
        assert symbol["stack"] == 0


MUST_NOT = re.compile(r"naive|mha_bmm|^mha_depth|multistage|gemv|sm90_matmul")
"""Loops without tensor cores, attention made for Ampere, and MAX's own products, which are wrong on Hopper."""
MUST = {
    "conditioning": "sm90_mha_",
    "text_encoder": "sm90_mha_",
    "denoise": "sm90_mha_",
    "decode": "mojo_pkg",
    "encode": "mojo_pkg",
}
"""Attention made for Hopper, warpgroup products of what TMA brings; the project's own group norm."""


def check_kernels(graph: str, kernels: Sequence[str]) -> None:
    """Every line is a kernel, its name first."""
    assert [kernel for kernel in kernels if MUST_NOT.search(kernel)] == []
    assert [kernel for kernel in kernels if kernel.startswith(MUST[graph])]


@pytest.mark.parametrize("graph", WITH_SYMBOLS)
def test_no_graph_has_a_kernel_that_others_should_do(graph: str) -> None:
    check_kernels(graph, sections(SYMBOLS)[graph].splitlines()[2:])


@pytest.mark.parametrize("graph", WITH_SYMBOLS)
def test_own_kernels_stay_in_registers(graph: str) -> None:
    """At most 64 a thread, so that a multiprocessor holds 1,024 threads, and nothing spilled."""
    kernels = [kernel for kernel in sections(SYMBOLS)[graph].splitlines() if kernel.startswith("mojo_pkg:")]
    assert kernels
    for kernel in kernels:
        registers = re.search(r": (\d+) registers, 0 bytes of stack", kernel)
        assert registers is not None, kernel
        assert int(registers[1]) <= 64, kernel


@pytest.mark.targets
@pytest.mark.slow
@pytest.mark.parametrize("graph", MUST)
def test_the_kernels_of_the_machine_code(graph: str) -> None:
    """Those that there must be; where they are written down, all of them, with the registers that they need."""
    (report,) = compile_target(FULL_MODEL, PINNED, "bfloat16", [graph], list_kernels=True, symbols=True)
    assert report.error is None, f"{report.error}; see {report.log}"
    assert report.symbols is not None
    heading, *kernels = symbol_lines(report.symbols)
    check_kernels(graph, kernels)
    if graph in WITH_SYMBOLS:
        assert "\n".join([f"# {graph}:", heading, *kernels]) == sections(SYMBOLS)[graph]
