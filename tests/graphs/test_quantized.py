"""Layers of quantized weights against numpy's float64, around the 12 rows of a tile and the 32 outputs of a panel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from max.driver import Buffer
from max.dtype import DType
from max.engine import Model
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.checkpoint.quantized import quantized
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.code_ops import quantized_linear
from max_zimage.graphs.layers import build
from max_zimage.graphs.linear import Codes, QuantizedLinear, codes_of, gated_linear, linear, stored_as
from tests.references import code_products as references
from tests.references.op_modules import Makers, Op, Ops, Typed, Wanted, run

HOST = DeviceRef.CPU()
Models = Mapping[str, Model]
CODES = {"int8": Codes(8, 128), "int8, small groups": Codes(8, 32), "q4": Codes(4, 32)}
OUTPUTS = {False: 43, True: 21}
BOUND = 1e-6  # of the largest number: sums within a group are exact, groups are joined in float32


def op(codes: Codes, *, gated: bool, dtype: DType = DType.float32) -> Typed:
    types = [
        TensorType(dtype, ["items", "length", "inputs"], HOST),
        TensorType(DType.uint8, ["panels", "units", "bytes"], HOST),
        TensorType(DType.float32, ["panels", "groups", 32], HOST),
    ]
    bits, group = codes.bits, codes.group

    def call(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        return quantized_linear(x, weight, scales, OUTPUTS[gated], bits=bits, group=group, gated=gated)

    return Op(call, types)


def makers_of(_: ModelDtype) -> Makers:
    makers: dict[str, Callable[[], Typed]] = {
        f"{name} {gated}": partial(op, codes, gated=gated) for name, codes in CODES.items() for gated in OUTPUTS
    }
    makers["bfloat16"] = lambda: op(CODES["int8"], gated=False, dtype=DType.bfloat16)
    return makers


OPS = Wanted(makers=makers_of, dtypes=["float32"])


@pytest.fixture(scope="module")
def compiled(compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Models:
    return compiled_ops["test_quantized", "float32"].models


def values(*shape: int, seed: int) -> npt.NDArray[np.float32]:
    """Normally distributed, some far out, as a network's are."""
    generator = np.random.default_rng(seed)
    drawn = generator.standard_normal(shape).astype(np.float32)
    return np.where(generator.random(shape) < 0.01, 20 * drawn, drawn).astype(np.float32)


@pytest.mark.parametrize("gated", OUTPUTS)
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize(("items", "length"), [(1, 1), (1, 12), (2, 13), (1, 40)])
def test_against_numpy(compiled: Models, name: str, gated: bool, items: int, length: int) -> None:
    codes, outputs = CODES[name], OUTPUTS[gated] * (1 + gated)
    x, weight = values(items, length, 256, seed=1), values(outputs, 256, seed=2) * np.float32(0.1)
    weight[3] = 0
    weight[5, :128] = 0
    x[0, 0, 128:] = 0
    packed = quantized(weight, "gated" if gated else "panels", codes)
    got = run(compiled[f"{name} {gated}"], Buffer.from_numpy(x), *packed).numpy()
    reference = references.gated_linear if gated else references.linear
    expected = reference(x, weight, codes.bits, codes.group)
    assert np.abs(got - expected).max() <= BOUND * np.abs(expected).max()


def test_bfloat16_is_rounded_once(compiled: Models) -> None:
    x, weight = values(1, 13, 256, seed=1), values(43, 256, seed=2)
    bits = x.view(np.uint32) >> 16 << 16
    x = bits.view(np.float32)
    given = Buffer.from_numpy((bits >> 16).astype(np.uint16).reshape(-1)).view(DType.bfloat16, x.shape)
    got = run(compiled["bfloat16"], given, *quantized(weight, "panels", CODES["int8"])).numpy()
    expected = references.linear(x, weight, *CODES["int8"][:2])
    assert (np.abs(got - expected) <= 2**-8 * np.abs(expected) + BOUND * np.abs(expected).max()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(compiled: Models, bad: float) -> None:
    """In a row of x it spoils that row, in the weights that output."""
    x, weight = values(1, 13, 256, seed=1), values(43, 256, seed=2)
    codes = CODES["int8"]
    spoiled = x.copy()
    spoiled[0, 4, 200] = bad
    got = run(compiled["int8 False"], Buffer.from_numpy(spoiled), *quantized(weight, "panels", codes)).numpy()
    assert not np.isfinite(got[0, 4]).any()
    assert np.isfinite(np.delete(got, 4, axis=1)).all()
    weight[7, 3] = bad
    got = run(compiled["int8 False"], Buffer.from_numpy(x), *quantized(weight, "panels", codes)).numpy()
    assert not np.isfinite(got[..., 7]).any()
    assert np.isfinite(np.delete(got, 7, axis=2)).all()


def test_which_layers_are_quantized() -> None:
    """Those without a bias whose inputs are whole groups; nothing outside of `stored_as`."""
    with stored_as("int8"):
        made = [build(partial(linear, inputs, 64), DType.float32, HOST) for inputs in (256, 192, 96, 48)]
        gated = build(lambda: gated_linear(96, 64), DType.float32, HOST)
        biased = build(lambda: linear(256, 64, bias=True), DType.float32, HOST)
    groups = [layer.codes.group if isinstance(layer, QuantizedLinear) else None for layer in (*made, gated)]
    assert groups == [128, 64, 32, None, 32]
    assert not isinstance(biased, QuantizedLinear)
    assert not isinstance(build(lambda: linear(256, 64), DType.float32, HOST), QuantizedLinear)
    assert codes_of("q4", 96) == Codes(4, 32)


@pytest.mark.parametrize(("name", "bound"), [("int8", 7e-3), ("int8, small groups", 5.5e-3), ("q4", 8.8e-2)])
def test_how_far_codes_are_from_normal_weights(
    name: str, bound: float, record_property: Callable[[str, object], None]
) -> None:
    weight = (0.02 * np.random.default_rng(0).standard_normal((256, 3840))).astype(np.float32)
    error = np.linalg.norm(references.weights(weight, *CODES[name][:2]) - weight) / np.linalg.norm(weight)
    record_property("relative error", error)
    assert error < bound
