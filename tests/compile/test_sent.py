"""What devices send each other, counted from traced graphs: by hand on a small text, and of the published model."""

from __future__ import annotations

import functools
import re

import pytest

from max_zimage.cli.main import main
from max_zimage.compile.ahead_of_time import FULL_MODEL, check_graphs, check_mesh, compile_target
from max_zimage.compile.jobs import Report
from max_zimage.compile.registry import AHEAD, MESHED
from max_zimage.compile.sent import Sent, nbytes_by_device, sent_in, sizes_of
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
    assert check_graphs((), devices=2) == (*AHEAD, *MESHED)
    with pytest.raises(ValueError, match=r"graphs must be among pack, .*, encode, .*, got 'denoise_meshed'"):
        check_graphs(("denoise_meshed",))


@functools.cache
def report(devices: int, split: str) -> Report:
    mesh = check_mesh(devices, split, PINNED)
    (found,) = compile_target(FULL_MODEL, PINNED, "bfloat16", ("denoise_meshed",), list_kernels=True, mesh=mesh)
    assert found.error is None, f"{found.error}; see {found.log}"
    return found


@pytest.mark.targets
@pytest.mark.parametrize(
    ("devices", "split", "items", "gigabytes"),
    # The table of one row of 1024x1024 pixels; two branches apart send only what a step begins with.
    [(2, "tokens", 1, 1.0), (4, "tokens", 1, 1.5), (2, "branches", 2, 0.04)],
)
def test_bytes_of_the_published_model(devices: int, split: str, items: int, gigabytes: float) -> None:
    sizes = sizes_of(check_mesh(devices, split, PINNED), items=items, image=4096, caption=32)
    found = nbytes_by_device(report(devices, split).sent, sizes)
    assert len(found) == devices
    assert max(found.values()) / 1e9 == pytest.approx(gigabytes, abs=0.06)
