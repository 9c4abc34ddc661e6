"""Normalized attention guidance of one attention's output, as a compiled graph, beside numpy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.graph import DeviceRef, TensorType

from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.model.normalized_attention import Strength, normalized
from tests.references.diffusers_runs import FloatArray, relative_l2
from tests.references.op_modules import Op, Ops, Wanted

CPU = DeviceRef.CPU()
BATCH, TOKENS, DIM = 2, 37, 3 * 64  # heads of 64: the sums run over all of them
GUIDED_L2 = 1e-6


def guided() -> Op:
    """`normalized` on its own."""
    tokens, number = TensorType(DType.float32, ["batch", "tokens", DIM], CPU), TensorType(DType.float32, [1], CPU)
    types = [tokens, tokens, number, number, number]
    return Op(lambda positive, negative, *strength: normalized(positive, negative, Strength(*strength)), types)


OPS = Wanted(makers=lambda _: {"guided": guided}, dtypes=["float32"])


@pytest.fixture(scope="module")
def graph(compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Model:
    return compiled_ops["test_normalized_attention", "float32"].models["guided"]


def compiled(graph: Model, positive: FloatArray, negative: FloatArray, *strength: float) -> FloatArray:
    numbers = [np.full(1, value, np.float32) for value in strength]
    return graph.execute(*(Buffer.from_numpy(each) for each in (positive, negative, *numbers)))[0].to_numpy()


def in_numpy(
    positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64], scale: float, tau: float, alpha: float
) -> npt.NDArray[np.float64]:
    made = np.empty_like(positive)
    for place in np.ndindex(positive.shape[:2]):
        plus, minus = positive[place], negative[place]
        further = scale * plus - (scale - 1) * minus
        ratio = np.abs(further).sum() / (np.abs(plus).sum() + 1e-6)
        made[place] = alpha * further * (tau / ratio if ratio > tau else 1) + (1 - alpha) * plus
    return made


def outputs(seed: int, unlike: float) -> tuple[FloatArray, FloatArray]:
    """Tokens of all sizes, more or less alike under the two captions."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.uniform(-3, 3, (BATCH, TOKENS, 1)))
    positive = sizes * random.standard_normal((BATCH, TOKENS, DIM))
    amounts = unlike * random.uniform(0, 1, (BATCH, TOKENS, 1))
    negative = positive + sizes * amounts * random.standard_normal((BATCH, TOKENS, DIM))
    return positive.astype(np.float32), negative.astype(np.float32)


@pytest.mark.parametrize("strength", [(5.0, 2.5, 0.25), (11.0, 1.0, 1.0), (1.5, 4.0, 0.5)], ids=str)
def test_it_is_that_of_numpy(strength: tuple[float, float, float], graph: Model) -> None:
    positive, negative = outputs(1, 1.0)
    expected = in_numpy(positive.astype(np.float64), negative.astype(np.float64), *strength)
    assert relative_l2(compiled(graph, positive, negative, *strength), expected) <= GUIDED_L2


def test_some_tokens_are_limited_and_others_not(graph: Model) -> None:
    """So that the comparison above sees both: no more than tau times as large as they were."""
    positive, negative = outputs(1, 1.0)
    grown = np.abs(compiled(graph, positive, negative, 5.0, 2.5, 1.0)).sum(axis=-1) / np.abs(positive).sum(axis=-1)
    assert grown.max() == pytest.approx(2.5, rel=1e-5)
    assert 0.2 < (grown > 2.5 * (1 - 1e-5)).mean() < 0.8


def test_a_scale_of_1_changes_nothing(graph: Model) -> None:
    positive, negative = outputs(2, 1.0)
    found = compiled(graph, positive, negative, 1.0, 1.0, 0.25)
    np.testing.assert_allclose(found, positive, rtol=3e-7)


def test_nothing_where_there_was_nothing(graph: Model) -> None:
    """Tokens of zeros: no 0 divided by 0."""
    zeros = np.zeros((BATCH, TOKENS, DIM), np.float32)
    assert np.abs(compiled(graph, zeros, zeros, 5.0, 2.5, 0.25)).max() == 0
