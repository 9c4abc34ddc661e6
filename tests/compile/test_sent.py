"""What devices send each other, counted from traced graphs: by hand on a small text, and of the published model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from max.graph import DeviceRef

from max_zimage import ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.compile.ahead_of_time import FULL_MODEL, check_graphs, check_mesh, compile_target, with_layers
from max_zimage.compile.registry import AHEAD, MESHED, TWO, Mesh, made
from max_zimage.compile.sent import Sent, nbytes_by_device, sent_in, sizes_of
from max_zimage.device.mesh import simulated_mesh
from tests.paths import ROOT
from tests.references.launches import PINNED

TEXT = """
  mo.graph @step<items, image_0>(%arg0: !mo.tensor<[items, image_0, 8], bf16, gpu:0>) {
    %result, %chain = rmo.mo.transfer[%1] %arg0 : !mo.tensor<[items, image_0, 8], bf16, gpu:0> to <"gpu", 1>
    %weight, %other = rmo.mo.transfer[%1] %9 : !mo.tensor<[8, 8], bf16> to <"gpu", 1>
    %3:2 = mo.call @block(%0) [prefix = "a."] : (!mo.chain) -> (!mo.chain)
    %4:2 = mo.call @block(%0) [prefix = "b."] : (!mo.chain) -> (!mo.chain)
  }
  mo.graph @block<items>(%arg0: !mo.chain) {
    %o:4, %c = mo.distributed.allgather(%a, %b, %s, %t, %u) [group_size = 2] : (!mo.tensor<[items, div(add(n, 1), 2)], \
f32, gpu:0>, !mo.tensor<[items, add(mul_no_wrap(n, -1), 8)], f32, gpu:1>, !mo.tensor<[2], f32, gpu:2>, !mo.tensor<[3], \
f32, gpu:3>, !mo.buffer<[16], ui8, gpu:0>, !mo.chain) -> (!mo.tensor<[2], f32, gpu:0>)
  }
"""


def test_a_graph_is_counted() -> None:
    found = sent_in(TEXT, "step")
    assert found[0] == Sent(source=0, target=1, shape=("items", "image_0", "8"), width=2, times=1, gathered=False)
    assert {(each.source, each.target, each.times) for each in found[1:]} == {
        (0, 1, 2),
        (1, 0, 2),
        (2, 3, 2),
        (3, 2, 2),
    }
    sizes = {"items": 3, "image_0": 5, "n": 7}
    # One transfer of 3 · 5 · 8 · 2 bytes; two gatherings of 3 · 4, 3 · 1, 2 and 3 numbers.
    assert nbytes_by_device(found, sizes) == {0: 240 + 2 * 48, 1: 2 * 12, 2: 2 * 8, 3: 2 * 12}
    with pytest.raises(KeyError):
        nbytes_by_device(found, {"items": 3})
    with pytest.raises(ValueError, match=re.escape("a size that is not understood: mod(n, 2)")):
        Sent(source=0, target=1, shape=("mod(n, 2)",), width=2, times=1, gathered=False).nbytes(sizes)
    assert sent_in(TEXT, "block")[0].times == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cpu", "--device-count", "2"], "several devices are GPUs, got target 'cpu'; name one, such as"),
        (["--target", PINNED, "--device-count", "9"], "device-count must be 1 to 8, got 9"),
        (["--target", PINNED, "--device-count", "3", "--split", "branches"], "halves the devices, got 3"),
        (["--target", PINNED, "--split", "tokens"], "split says what several devices share; name their number"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["compile", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_graphs_for_several_devices_come_with_their_number() -> None:
    assert check_graphs((), mesh=TWO) == (*AHEAD, *MESHED)
    with pytest.raises(ValueError, match=r"graphs must be among pack, .*, encode, .*, got 'denoise_meshed'"):
        check_graphs(("denoise_meshed",))


@pytest.mark.parametrize(
    ("words", "groups"),
    [
        ((), 1),  # Z-Image-Turbo
        (("--model", "tiny-zimage"), 2),
        (("--model", "tiny-zimage", "--split", "tokens"), 1),
        (("--model", "tiny-zimage", "--config", "unguided.toml"), 1),
        (("--config", "guided.toml"), 2),
    ],
)
def test_devices_share_what_they_share_when_it_is_drawn(
    words: tuple[str, ...], groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs for others would be compiled, kept and never found."""
    monkeypatch.chdir(tmp_path)
    for name, scale in (("guided", 4.0), ("unguided", 0.0)):
        Path(f"{name}.toml").write_text(f"[generation]\nguidance_scale = {scale}\n")
    found: list[Mesh] = []

    def compile_target(*_: Any, mesh: Mesh, **__: Any) -> list[Any]:
        found.append(mesh)
        return []

    monkeypatch.setattr("max_zimage.cli.compile.compile_target", compile_target)
    assert main(["compile", "--target", PINNED, "--device-count", "2", *words]) == 0
    assert found == [Mesh(2, groups)]
    if "--split" not in words and words:  # as when it is drawn
        with simulated_mesh():
            config = words[-1] if words[-2] == "--config" else None
            assert ZImagePipeline.prepare(devices=["cpu", "cpu"], config=config).wish.groups == groups


def test_graphs_of_one_row_are_none_of_two_groups() -> None:
    branches, one_row = check_mesh(4, "branches", PINNED), "meshed_first_block_noise_refiner"
    assert one_row in check_graphs((), mesh=check_mesh(4, "tokens", PINNED))
    named = check_graphs((), mesh=branches)
    assert named == (*AHEAD, "denoise_meshed", "denoise_meshed_padded")
    with pytest.raises(ValueError, match=f"graphs must be among .*, denoise_meshed_padded, got '{one_row}'"):
        check_graphs((one_row,), mesh=branches)
    for name in named[len(AHEAD) :]:  # whatever is named can be made
        made(name, with_layers(FULL_MODEL, 1), "float32", DeviceRef.CPU(), mesh=branches)


@pytest.mark.targets
@pytest.mark.parametrize("devices", [2, 4])
def test_a_worker_says_it_too(devices: int) -> None:
    """A refiner block and a main block of the published widths: keys and values of a device's part go to each other."""
    mesh, specs = check_mesh(devices, "tokens", PINNED), with_layers(FULL_MODEL, 1)
    (report,) = compile_target(specs, PINNED, "bfloat16", ("denoise_meshed",), list_kernels=True, mesh=mesh)
    assert report.error is None, f"{report.error}; see {report.log}"
    assert report.kernels is not None
    assert report.kernels.total >= 20 * devices  # ten a block, as on one device
    gathered = [each for each in report.sent if each.gathered]
    found = nbytes_by_device(gathered, sizes_of(items=1, image=4096, caption=32))
    part = (4096 + 4128) * 3840 * 2 * 2 // devices
    assert [*found.values()] == [part * (devices - 1)] * devices


@pytest.mark.targets
def test_the_page_has_what_graphs_send() -> None:
    """In a process of its own: virtual devices are there before anything else."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.several_gpus", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
