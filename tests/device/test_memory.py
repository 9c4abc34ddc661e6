"""What loading costs in memory, measured, and the refusal of what does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from max.driver import CPU
from safetensors.torch import save_file

from max_zimage.device.memory import NotEnoughMemoryError, available_memory, check_device_memory, check_memory
from tests.paths import ROOT

# Runs alone: the peak of a process cannot be reset. The kernel keeps it in /proc/self/status.
_MEASURE = """
import sys
from pathlib import Path
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.plan import LoadPlan, ParameterRecipe
from max_zimage.checkpoint.formats import open_source

def status(key):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024

file, dtype, fused = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "fused"
tensors = list(open_source([file]).tensors.values())
rows, width = tensors[0].shape
groups = [tensors] if fused else [[tensor] for tensor in tensors]
steps = [ParameterRecipe(group[0].name, tuple(group), "same", (rows * len(group), width)) for group in groups]
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
buffers = load(LoadPlan("test", "test", (file,), tuple(steps), {}), dtype)
for buffer in buffers.values():  # a map costs nothing until it is read
    buffer.to_numpy().view("u1").reshape(-1)[::4096].sum() if dtype == "float32" else None
print(status("VmHWM") - before, sum(buffer.num_elements * buffer.dtype.size_in_bytes for buffer in buffers.values()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of a process from /proc")
@pytest.mark.parametrize(
    ("stored", "dtype", "fused"),
    [
        ("bfloat16", "float32", "single"),
        ("float32", "float32", "single"),
        ("float32", "float32", "fused"),
        ("float32", "bfloat16", "single"),
    ],
)
def test_a_component_is_never_in_memory_twice(stored: str, dtype: str, fused: str, tmp_path: Path) -> None:
    """400 MB in 8 tensors, read to the last page: at most 1.15 times the result, and a little for the interpreter."""
    file = tmp_path / "weights.safetensors"
    size = 4 if stored == "float32" else 2
    count = 400_000_000 // 8 // size // 1000
    save_file({f"{i}": torch.full((count, 1000), i, dtype=getattr(torch, stored)) for i in range(8)}, file)
    command = [sys.executable, "-c", _MEASURE, str(file), dtype, fused]
    # MAX sets PYTHONEXECUTABLE behind Python's back, which would lead a child astray: os.environ does not have it.
    environment = dict(os.environ)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    measured = done.stdout.split()
    growth, result = int(measured[0]), int(measured[1])
    assert result == pytest.approx(400e6 * (4 if dtype == "float32" else 2) / size, rel=0.01)
    assert growth <= 1.15 * result + 16e6, f"grew by {growth / 1e6:.0f} MB for {result / 1e6:.0f} MB of weights"


def test_not_enough_memory_is_said_in_numbers() -> None:
    check_memory(2**30, 2**30)
    with pytest.raises(NotEnoughMemoryError, match=r"need 24\.6 GiB, 21\.0 GiB are available"):
        check_memory(int(24.6 * 2**30), 21 * 2**30)


def test_a_device_that_is_too_small_is_named() -> None:
    device = CPU()
    total = int(device.stats["total_memory"])
    check_device_memory(total, device)
    with pytest.raises(NotEnoughMemoryError, match=r"GiB are available on cpu:0; free memory"):
        check_device_memory(total + 1, device)


def test_available_memory_knows_the_limit_of_a_container(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().available
    assert available_memory(tmp_path) == pytest.approx(machine, rel=0.2)  # no such container
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 150000\n")
    assert available_memory(tmp_path) == 450000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == pytest.approx(machine, rel=0.2)
