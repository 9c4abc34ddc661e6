"""The kernels' tile as a processor with fewer and narrower registers than this one's would run it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from max_zimage.graphs.cpu import instructions
from tests.paths import ROOT


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the processor is one of x86-64")
@pytest.mark.parametrize("processor", ["haswell", "skylake-avx512"])
def test_the_tile_on_a_processor_that_has_less(processor: str, tmp_path: Path) -> None:
    """Three rows at a time in the sixteen registers of AVX2; pairs of bfloat16 and codes without their instructions."""
    if processor != "haswell" and "avx512f" not in instructions():
        pytest.skip("this processor has no AVX-512")
    program, source = tmp_path / "tile", Path(__file__).with_name("tile_products.mojo")
    mojo = [sys.executable, str(Path(sys.executable).with_name("mojo"))]
    build = [*mojo, "build", "--target-cpu", processor, "-I", str(ROOT), "-o", str(program)]
    # MAX has put paths of this process's Python into its environment.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MOJO"))}
    done = subprocess.run([*build, str(source)], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout.split() == 6 * ["0.0"]
