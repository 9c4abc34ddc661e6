"""The ops for a GPU against float64 in the form that a CPU can run, which differs in indexing alone.

`tests/gpu/test_gpu.py` runs the same cases where there is a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch
from max.driver import CPU
from max.engine import Model

from max_zimage.graphs import gpu_ops
from tests.references import gpu_ops as references
from tests.references.gpu_ops import NAMES, Widths, expected, inputs
from tests.references.op_modules import check

SMALL = Widths(query_heads=3, key_heads=2, head_dim=32, dim=512, ffn=24)


@pytest.fixture(scope="module")
def model() -> Model:
    return references.compile_all(SMALL, CPU())


@pytest.mark.parametrize(("items", "length", "tables"), [(1, 1, 1), (1, 33, 1), (2, 32, 2), (3, 7, 1)])
def test_the_ops_in_float64(model: Model, items: int, length: int, tables: int) -> None:
    given = inputs(SMALL, items, length, tables=tables)
    ours = references.run(model, given, CPU())
    exact, plain = (expected(SMALL, given, dtype) for dtype in (torch.float64, torch.bfloat16))
    for mine, simple, right in zip(ours, plain, exact, strict=True):
        check(mine, simple, right)


def test_they_round_once(model: Model) -> None:
    """No further from float64 than rounding its result is, but for what float32 loses before: plain operations are."""
    given = inputs(SMALL, 2, 50, tables=1)
    exact, plain = (expected(SMALL, given, dtype) for dtype in (torch.float64, torch.bfloat16))
    for name, mine, simple, right in zip(NAMES, references.run(model, given, CPU()), plain, exact, strict=True):
        rounding = (right.to(torch.bfloat16).double() - right).norm()
        assert (mine - right).norm() < 1.02 * rounding, name
        assert (simple.double() - right).norm() > (1.02 * rounding if name != "scaled" else 0), name


def test_the_epsilon_counts(model: Model) -> None:
    """Numbers as small as its root: half of their size is the epsilon's."""
    given = inputs(SMALL, 1, 20, tables=1, scale=references.EPSILON**0.5)
    exact = expected(SMALL, given, torch.float64)
    for mine, right in zip(references.run(model, given, CPU()), exact, strict=True):
        assert (mine - right).norm() < 0.01 * right.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e25])
def test_what_is_not_finite_stays_so(model: Model, bad: float) -> None:
    """Also what is finite and too large for its square, where it is squared; the other tokens are not touched."""
    given = inputs(SMALL, 1, 5, tables=1)
    given[0][0, 2, :, 3] = given[4][0, 2, 3] = given[5][0, 2, 3] = given[7][0, 2, 3] = bad
    for name, mine in zip(NAMES, references.run(model, given, CPU()), strict=True):
        assert mine[0, [0, 1, 3, 4]].isfinite().all(), name
        if name != "gated" or not math.isfinite(bad):
            assert not mine[0, 2].isfinite().all(), name


def test_swiglu_at_its_ends(model: Model) -> None:
    given = inputs(SMALL, 1, 3, tables=1)
    given[7][0, 0, :6] = torch.tensor([-1e30, -200.0, 0.0, 200.0, 1e30, float("nan")])
    given[7][0, 0, 24:30] = torch.ones(6)
    gated = references.run(model, given, CPU())[NAMES.index("gated")][0, 0, :6]
    assert gated[:3].abs().max() < 1e-7
    assert gated[3:5].tolist() == torch.tensor([200.0, 1e30]).to(torch.bfloat16).double().tolist()
    assert gated[5].isnan()


def test_widths_that_suit() -> None:
    assert [width for width in (64, 96, 128, 256, 320, 3840, 2560, 2304, 100) if gpu_ops.has_gated_norms(width)] == [
        *(256, 3840, 2560, 2304)
    ]
    assert [gpu_ops.threads_of(width) for width in (256, 3840, 2560)] == [32, 160, 160]
    assert [width for width in (24, 64, 96, 128, 512) if gpu_ops.has_rotary_heads(width)] == [64, 128]
    assert [width for width in (682, 10240) if gpu_ops.has_swiglu(width)] == [10240]
