"""The ops for pictures on a GPU against float64 in the form that a CPU can run, which differs in indexing alone.

`tests/gpu/test_gpu.py` runs the same cases where there is a GPU.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule

from max_zimage.checkpoint.layout import weight_buffer
from max_zimage.graphs import gpu_ops
from max_zimage.graphs.kernel_library import compile_with_kernels, without_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.model import vae_blocks
from tests.graphs.test_vae import random_model
from tests.references import gpu_pictures as references
from tests.references.engine_weights import engine_vae
from tests.references.gpu_pictures import NORMS, attended, heads, normed, picture, run
from tests.references.op_modules import check

HOST = DeviceRef.CPU()

WIDTH = 96


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return references.compile_all(CPU(), WIDTH)


# One pixel; fewer than there are slabs, and more; so many that a thread takes several at a time, and some besides.
SIZES = [(1, 1, 1), (2, 5, 7), (1, 33, 17), (1, 96, 90)]


@pytest.mark.parametrize(("items", "rows", "columns"), SIZES)
@pytest.mark.parametrize("name", NORMS)
def test_group_norm(models: dict[str, Model], name: str, items: int, rows: int, columns: int) -> None:
    given = picture(name, items, rows, columns)
    ours, exact, plain = (
        run(models[name], given),
        *(normed(name, given, each) for each in (torch.float64, torch.bfloat16)),
    )
    for mine, simple, right in zip(ours, plain, exact, strict=True):
        check(mine, simple, right)
        rounding = (right.to(torch.bfloat16).double() - right).norm()
        assert (mine - right).norm() <= 1.02 * rounding + 1e-6 * right.norm()


@pytest.mark.parametrize("name", NORMS)
def test_a_large_mean_takes_nothing_from_the_deviation(models: dict[str, Model], name: str) -> None:
    """Squares of the numbers themselves would lose it: they are ten thousand times the variance."""
    given = picture(name, 1, 40, 50, mean=300.0)
    (exact, _), (ours, _) = normed(name, given, torch.float64), run(models[name], given)
    rounding = (exact.to(torch.bfloat16).double() - exact).norm()
    assert (ours - exact).norm() <= 1.02 * rounding + 2e-5 * exact.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e25])
def test_what_is_not_finite_stays_so(models: dict[str, Model], bad: float) -> None:
    """Also what is finite and too large for its square; the other groups and items are not touched."""
    given = picture("4", 2, 9, 11)
    given[0][1, 3, 4, 9] = bad
    for ours in run(models["4"], given):
        assert not ours[1, 3, 4, 8:12].isfinite().any()
        assert ours[1, :, :, 8:12].isnan().any()
        assert ours[0].isfinite().all()
        assert ours[1, :, :, :8].isfinite().all()
        assert ours[1, :, :, 12:].isfinite().all()


def test_widths_that_suit() -> None:
    widths = [(128, 32), (256, 32), (512, 32), (16, 8), (16, 1), (96, 8), (24, 8), (4, 2), (128, 3), (8192, 32)]
    assert [each for each in widths if gpu_ops.has_group_norm(*each)] == [
        (128, 32),
        (256, 32),
        (512, 32),
        (16, 8),
        (16, 1),
    ]


# Fewer scores than threads; so many that some take two shares; two items.
@pytest.mark.parametrize(("items", "length"), [(1, 4), (2, 100), (1, 2060)])
def test_wide_attention(models: dict[str, Model], items: int, length: int) -> None:
    given = heads(items, length, WIDTH)
    (ours,) = run(models["attention"], given)
    check(ours, attended(given, torch.bfloat16), attended(given, torch.float64))


def test_scores_far_apart(models: dict[str, Model]) -> None:
    """One key takes all weight, wherever it is."""
    given = heads(1, 200, WIDTH, scale=30.0)
    (ours,) = run(models["attention"], given)
    exact = attended(given, torch.float64)
    assert (ours - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_found(models: dict[str, Model], bad: float) -> None:
    given = heads(1, 20, WIDTH)
    given[1][0, 3, 5] = bad
    (ours,) = run(models["attention"], given)
    assert ours.isnan().any()


def test_a_length_that_is_not_whole_is_refused(models: dict[str, Model]) -> None:
    with pytest.raises(Exception, match="multiple of 4, got 18"):
        run(models["attention"], heads(1, 18, WIDTH))


@pytest.mark.slow  # a product in bfloat16 on a CPU compiles for minutes
def test_the_middle_attention_as_a_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norm, products, head and shortcut put together; the same norm with SiLU besides."""
    monkeypatch.setattr(vae_blocks, "runs_on_nvidia", lambda dtype, _: dtype == DType.bfloat16)
    reference = random_model().reference.decoder.mid_block.attentions[0]
    prefix = "decoder.mid_block.attentions.0."
    state = engine_vae({prefix + name: value for name, value in reference.state_dict().items()})
    weights = {
        f"attention.{name.removeprefix(prefix)}": weight_buffer(value.contiguous().numpy(), DType.bfloat16, None)
        for name, value in state.items()
    }
    together = GraphModule()
    with without_kernels():
        middle = build(Middle, DType.bfloat16, HOST)
        types = [TensorType(DType.bfloat16, ["items", "rows", "columns", 32], HOST)]
        graph = trace(middle, types, "middle", together)
    assert set(weights) == {name for name, _ in middle.parameters}
    session = InferenceSession([CPU()])
    models = session.init_all(compile_with_kernels(session, together, [graph]), weights_registry=weights)
    x = torch.randn((2, 6, 10, 32), generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    ours = run(models["middle"], [x])
    with torch.no_grad():
        exact, plain = (
            attended_and_normed(deepcopy(reference).to(torch.bfloat16).to(dtype), x.to(dtype))
            for dtype in (torch.float64, torch.bfloat16)
        )
    for mine, simple, right in zip(ours, plain, exact, strict=True):
        check(mine, simple, right)


class Middle(Module[..., list[Tensor]]):
    """The middle attention, and its norm with SiLU."""

    def __init__(self) -> None:
        self.attention = vae_blocks.SpatialAttention(32, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.attention(x), self.attention.group_norm(x, silu=True)]


def attended_and_normed(reference: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What `Middle` computes."""
    planes = x.permute(0, 3, 1, 2)
    results = [reference(planes), torch.nn.functional.silu(reference.group_norm(planes))]
    return [result.permute(0, 2, 3, 1) for result in results]
