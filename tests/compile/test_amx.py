"""Products in the tiles of AMX: the machine code that Mojo makes, run by the processor or by an emulator of tiles.

Rows are counted around the 32 of a square, outputs around the 32 of a panel and the 16 of a gated one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from math import ceil
from pathlib import Path

import pytest
import torch

from max_zimage.checkpoint.layout import packed
from max_zimage.device.dtypes import bfloat16_bits
from max_zimage.graphs import cpu
from tests.paths import ROOT
from tests.references import kernels as references
from tests.references.amx import AmxEmulator, decoded
from tests.references.op_modules import check, numbers

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is of x86-64")
KINDS = ("plain", "gated")


HAS_TILES = """
from kernels.tiles import HAS_TILES

def main():
    comptime if HAS_TILES:
        print("by AMX")
    else:
        print("in vectors")
"""


def mojo_build(source: Path, path: Path, *arguments: str) -> Path:
    mojo = [sys.executable, str(Path(sys.executable).with_name("mojo"))]
    build = [*mojo, "build", *arguments, "-I", str(ROOT), "-o", str(path), str(source)]
    # MAX has put paths of this process's Python into its environment.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MOJO"))}
    done = subprocess.run(build, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path, source = tmp_path_factory.mktemp("amx") / "tile_linear.so", Path(__file__).with_name("tile_linear.mojo")
    return ctypes.CDLL(str(mojo_build(source, path, "--emit", "shared-lib")))


@pytest.fixture
def emulator() -> Iterator[AmxEmulator | None]:
    """None on a processor that has tiles: it does them itself."""
    with AmxEmulator() if "tiles" not in cpu.inner_loops() else nullcontext() as emulator:
        yield emulator


def product(library: ctypes.CDLL, name: str, x: torch.Tensor, weight: torch.Tensor, outputs: int) -> torch.Tensor:
    """One product with a packed weight; what lies around the result has to stay as it is."""
    bits = bfloat16_bits(weight.float().numpy())
    panels = torch.from_dlpack(packed(bits, "gated" if name.startswith("gated") else "panels"))
    (rows, inputs), margin, untouched = x.shape, 64, 0x7FC1  # a NaN that no product makes
    whole = torch.full([margin + rows * outputs + margin], untouched, dtype=torch.int16)
    places = [whole[margin:], x, panels]
    sizes = (rows, inputs // 2, outputs, panels.shape[0])
    getattr(library, name)(*(ctypes.c_void_p(each.data_ptr()) for each in places), *map(ctypes.c_int64, sizes))
    assert (whole[:margin] == untouched).all()
    assert (whole[-margin:] == untouched).all()
    return whole[margin:-margin].reshape(rows, outputs).view(torch.bfloat16).double()


def panels_of(name: str, outputs: int) -> int:
    return ceil(outputs / (16 if name == "gated" else 32))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rows", [1, 16, 31, 33, 70])
@pytest.mark.parametrize("outputs", [1, 16, 21, 43, 64])
@pytest.mark.parametrize("inputs", [32, 96])
def test_products(
    library: ctypes.CDLL, emulator: AmxEmulator | None, name: str, rows: int, outputs: int, inputs: int
) -> None:
    height = outputs * (2 if name == "gated" else 1)
    x, weight = numbers("bfloat16", rows, inputs), numbers("bfloat16", height, inputs, seed=1)
    ours = product(library, f"{name}_in_tiles", x, weight, outputs)
    reference = references.gated_linear if name == "gated" else references.linear
    check(ours, reference(x, weight), reference(x.double(), weight.double()))
    others = product(library, f"{name}_in_vectors", x, weight, outputs)
    assert (ours - others).norm() <= 0.005 * others.norm()  # both are rounded to eight bits at the end
    if emulator is not None:
        assert emulator.error is None
        assert emulator.is_released
        squares = ceil(rows / 32) * panels_of(name, outputs)
        steps = squares * inputs // 32
        assert emulator.counts == {
            "ldtilecfg": 2,
            "tilerelease": 2,
            "tilezero": 4 * squares,
            "tileloadd": 4 * steps,
            "tdpbf16ps": 4 * steps,
            "tilestored": 4 * squares,
        }


@pytest.mark.parametrize("name", KINDS)
def test_whole_numbers_are_exact(library: ctypes.CDLL, emulator: AmxEmulator | None, name: str) -> None:
    """What one of an output's inputs gives can be told from what another gives."""
    x = torch.zeros(33, 64, dtype=torch.bfloat16)
    x[torch.arange(33), torch.arange(33) * 5 % 64] = 1
    weight = (torch.arange(64 * 64).reshape(64, 64) % 251).to(torch.bfloat16)
    outputs = 32 if name == "gated" else 64
    reference = references.gated_linear if name == "gated" else references.linear
    expected = reference(x.double(), weight.double()).to(torch.bfloat16).double()
    assert torch.equal(product(library, f"{name}_in_tiles", x, weight, outputs), expected)


@pytest.mark.parametrize(
    ("processor", "says"),
    [("sapphirerapids", "by AMX"), ("znver4", "in vectors")],
)
def test_which_processors_are_compiled_for_with_tiles(processor: str, says: str, tmp_path: Path) -> None:
    source = tmp_path / "has_tiles.mojo"
    source.write_text(HAS_TILES)
    text = mojo_build(source, tmp_path / "has_tiles.s", "--emit", "asm", "--target-cpu", processor).read_text()
    assert [each for each in ("by AMX", "in vectors") if each in text] == [says]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("c4e2784900", ("ldtilecfg", 5, 0, 0, 0, 0, None, 0)),
        ("c4e27849c0", ("tilerelease", 5, 0, 0, 0, None, None, 0)),
        ("c4e27b49d8", ("tilezero", 5, 3, 0, 0, None, None, 0)),
        ("c4a27b4b2426", ("tileloadd", 6, 4, 0, 0, 6, 12, 0)),
        ("c4a27b4b7c3040", ("tileloadd", 7, 7, 0, 0, 0, 14, 64)),
        ("c4a27a4b943700080000", ("tilestored", 10, 2, 0, 0, 7, 14, 2048)),
        ("c4e24a5cc4", ("tdpbf16ps", 5, 0, 4, 6, None, None, 0)),
    ],
)
def test_instructions_are_read_as_a_disassembler_reads_them(code: str, expected: tuple[object, ...]) -> None:
    assert decoded(bytes.fromhex(code).ljust(15, b"\x90")) == expected


@pytest.mark.parametrize("code", ["0f0b", "c5f877", "c4e2785cc4", "c4a27b4b246e", "c4e27b4b0525"])
def test_other_instructions_are_not_taken_for_them(code: str) -> None:
    with pytest.raises(ValueError, match=r"instruction|address"):
        decoded(bytes.fromhex(code).ljust(15, b"\x90"))


def test_products_without_tiles_being_set_up_are_an_error() -> None:
    emulator = AmxEmulator()
    with pytest.raises(ValueError, match="not set up"):
        emulator._do(decoded(bytes.fromhex("c4e24a5cc4")), [0] * 23)
