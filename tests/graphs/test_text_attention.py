"""Ops of `kernels` around kept keys and values, a table of embeddings and logits, against float64, in both dtypes.

New tokens are counted around the 32 of a panel of queries, all keys around the 96 of a block; vocabularies fill no
panel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.graphs import text_ops
from max_zimage.graphs.diffusion_gemma.stack import looked
from max_zimage.graphs.kernel_library import without_kernels
from tests.references import kernels as references
from tests.references.op_modules import Makers, Op, Ops, Typed, Wanted, buffer, check, compile_ops, numbers, run

HOST = DeviceRef.CPU()
FLOAT = DType.float32
EPSILON = 1e-5
HEADS = {"unit values of keys": (4, 2, 64, False, True, 1.0), "plain values": (2, 2, 32, True, False, 32**-0.5)}
"""Name -> heads, key_heads, head_dim, whether there are values, whether they are normalized, scale."""
TOPS = {"all": (50, 50), "some": (519, 64)}
"""Name -> vocabulary, how many are named."""
WIDTH, VOCABULARY, FACTOR, CAP = 44, 70, 6.5, 5.0


class Attention(Typed):
    """All three results."""

    def __init__(self, name: str, dtype: DType) -> None:
        heads, shared, head_dim, has_values, self.unit_values, self.scale = HEADS[name]
        self.heads = heads, shared
        weight = TensorType(dtype, [head_dim], HOST)
        past = TensorType(dtype, ["rows", "cached", shared, head_dim], HOST)
        self.types = [
            TensorType(dtype, ["rows", "length", heads + (2 if has_values else 1) * shared, head_dim], HOST),
            *(weight, weight),
            TensorType(FLOAT, ["turned", head_dim // 2, 2], HOST),
            TensorType(FLOAT, ["rows", "length", "seen"], HOST),
            *(past, past),
        ]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        qkv, query, key, rope, mask, *past = inputs
        heads, shared = self.heads
        sizes: dict[str, Any] = {"heads": heads, "key_heads": shared, "unit_values": self.unit_values}
        how: dict[str, Any] = {"epsilon": EPSILON, "scale": self.scale}
        return [*text_ops.cached_attention(qkv, query, key, rope, mask, (*past,), **sizes, **how)]


class Told(Typed):
    """What is told of logits, by the op or by its twin."""

    def __init__(self, vocabulary: int, top: int, *, is_plain: bool) -> None:
        self.top, self.is_plain = top, is_plain
        self.types = [TensorType(FLOAT, ["rows", "length", vocabulary], HOST)]

    def forward(self, logits: Tensor) -> list[Tensor]:
        if not self.is_plain:
            return [*looked(logits, self.top, FLOAT)[1:]]
        with without_kernels():
            return [*looked(logits, self.top, FLOAT)[1:]]


def table_ops(dtype: DType) -> dict[str, Callable[[], Typed]]:
    table, one = TensorType(dtype, [VOCABULARY, WIDTH], HOST), TensorType(FLOAT, [1], HOST)
    logits = [TensorType(dtype, ["rows", "length", WIDTH], HOST), table, one]
    means = [TensorType(dtype, ["rows", "length", VOCABULARY], HOST), TensorType(FLOAT, ["rows"], HOST), table]
    return {
        "logits": lambda: Op(lambda x, table, heat: text_ops.table_logits(x, table, CAP, heat), logits),
        "means": lambda: Op(lambda z, enabled, table: text_ops.table_means(z, enabled, table, FACTOR), means),
    }


def makers_of(name: ModelDtype) -> Makers:
    makers: dict[str, Callable[[], Typed]] = {each: partial(Attention, each, DType[name]) for each in HEADS}
    makers |= table_ops(DType[name])
    if name == "float32":
        makers |= {f"told {each}": partial(Told, *sizes, is_plain=False) for each, sizes in TOPS.items()}
    return makers


OPS = Wanted(makers=makers_of)


@pytest.fixture(scope="module", params=DTYPES)
def compiled(request: pytest.FixtureRequest, compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Ops:
    """Every op in one dtype."""
    return compiled_ops["test_text_attention", request.param]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("rows", "length", "cached"), [(1, 1, 0), (2, 1, 95), (1, 1, 96), (2, 32, 100), (1, 33, 63), (2, 5, 0), (1, 97, 7)]
)
def test_attention_over_what_was_kept(compiled: Ops, name: str, rows: int, length: int, cached: int) -> None:
    heads, shared, head_dim, has_values, unit_values, scale = HEADS[name]
    dtype = compiled.dtype
    qkv = numbers(dtype, rows, length, heads + (2 if has_values else 1) * shared, head_dim)
    weights = [1 + numbers(dtype, head_dim, scale=0.2, seed=seed) for seed in (1, 2)]
    angles = numbers("float32", length, head_dim // 2, scale=3.0, seed=3)
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1)
    past = [numbers(dtype, rows, cached, shared, head_dim, seed=seed) for seed in (4, 5)]
    keys, queries = torch.arange(cached + length), torch.arange(cached, cached + length)[:, None]
    begins = torch.arange(rows)[:, None, None] * 3  # what stands before is hidden, but from itself
    seen = (keys <= queries) & (keys >= begins) | (keys == queries)
    mask = torch.where(seen, 0.0, -1e30)
    inputs = map(buffer, (qkv, *weights, rope, mask, *past))
    ours = [torch.from_dlpack(each).double() for each in compiled.models[name].execute(*inputs)]

    def reference(wide: bool) -> tuple[torch.Tensor, ...]:
        given, query, key, *kept = (each.double() if wide else each for each in (qkv, *weights, *past))
        how = (heads, shared), unit_values, scale, EPSILON
        return references.cached_attention(given, query, key, rope, mask, (kept[0], kept[1]), *how)

    for found, plain, exact in zip(ours, reference(wide=False), reference(wide=True), strict=True):
        check(found, plain, exact)


def test_a_query_is_the_same_alone_and_beside_others(compiled: Ops) -> None:
    """As long as all see the same keys: one more key may be in another block."""
    name = "plain values"
    heads, shared, head_dim, *_ = HEADS[name]
    qkv = numbers(compiled.dtype, 3, 40, heads + 2 * shared, head_dim)
    weight = numbers(compiled.dtype, head_dim, seed=1)
    rope = torch.stack([torch.ones(40, head_dim // 2), torch.zeros(40, head_dim // 2)], dim=-1)
    past = [numbers(compiled.dtype, 3, 70, shared, head_dim, seed=seed) for seed in (4, 5)]
    mask = torch.zeros(3, 40, 110)
    together = run(compiled.models[name], *map(buffer, (qkv, weight, weight, rope, mask, *past)))
    one = (qkv[1:2], weight, weight, rope, mask[1:2], *(each[1:2] for each in past))
    assert torch.equal(run(compiled.models[name], *map(buffer, one))[0], together[1])


def test_a_mask_of_other_sizes_is_refused(compiled: Ops) -> None:
    heads, shared, head_dim, *_ = HEADS["plain values"]
    qkv, weight = numbers(compiled.dtype, 1, 4, heads + 2 * shared, head_dim), numbers(compiled.dtype, head_dim)
    past = [numbers(compiled.dtype, 1, 3, shared, head_dim)] * 2
    rope, mask = torch.ones(4, head_dim // 2, 2), torch.zeros(1, 4, 8)
    with pytest.raises(Exception, match="the mask has 8 keys, and there are 7"):
        compiled.models["plain values"].execute(*map(buffer, (qkv, weight, weight, rope, mask, *past)))


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 13)])
def test_logits_of_a_table(compiled: Ops, rows: int, length: int) -> None:
    x, table = numbers(compiled.dtype, rows, length, WIDTH), numbers(compiled.dtype, VOCABULARY, WIDTH, seed=1)
    heat = torch.tensor([0.7])
    ours = run(compiled.models["logits"], *map(buffer, (x, table, heat)))
    plain, exact = ((each @ other.T) for each, other in ((x, table), (x.double(), table.double())))
    check(ours, (plain.float() / CAP).tanh() * CAP / heat, (exact / CAP).tanh() * CAP / heat.double())


@pytest.mark.parametrize("length", [1, 13])
def test_means_of_a_table(compiled: Ops, length: int) -> None:
    z, table = (
        numbers(compiled.dtype, 3, length, VOCABULARY, scale=3.0),
        numbers(compiled.dtype, VOCABULARY, WIDTH, seed=1),
    )
    z[1] = torch.nan  # of which nothing is read
    enabled = torch.tensor([1.0, 0.0, 1.0])
    ours = run(compiled.models["means"], *map(buffer, (z, enabled, table)))
    assert not ours[1].any()
    plain, exact = (
        torch.softmax(each.float() if each.dtype == torch.bfloat16 else each, -1).to(each.dtype) @ other * FACTOR
        for each, other in ((z, table), (z.double(), table.double()))
    )
    check(ours[::2], plain[::2], exact[::2])


@pytest.mark.parametrize("name", TOPS)
def test_what_is_told_of_logits(compiled: Ops, name: str) -> None:
    if f"told {name}" not in compiled.models:
        pytest.skip("of float32 logits alone")
    vocabulary, top = TOPS[name]
    z = numbers("float32", 3, 7, vocabulary, scale=3.0)
    z[0] = z[0].round()  # of equal ones the first is told
    z[1, 0] = torch.arange(vocabulary) * 0.01
    z[1, 1] = 2.0
    check_told(compiled.models[f"told {name}"].execute(buffer(z)), z, top)


@pytest.mark.slow
def test_the_twin_of_what_is_told() -> None:
    vocabulary, top = TOPS["some"]
    z = numbers("float32", 3, 7, vocabulary, scale=3.0)
    model = compile_ops({"plain": partial(Told, vocabulary, top, is_plain=True)}, "float32")["plain"]
    check_told(model.execute(buffer(z)), z, top)


def check_told(found: Sequence[Buffer], z: torch.Tensor, top: int) -> None:
    first, chances, tokens, entropy = (each.to_numpy() for each in found)
    wide = z.double()
    shares = torch.softmax(wide, dim=-1)
    expected = np.argsort(-z.numpy(), axis=-1, kind="stable")[..., :top]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(first, expected[..., 0])
    np.testing.assert_allclose(chances, np.take_along_axis(shares.numpy(), expected, -1), rtol=1e-5)
    exact = torch.distributions.Categorical(logits=wide).entropy().numpy()
    np.testing.assert_allclose(entropy, exact, rtol=1e-5, atol=1e-5)


def test_logits_that_are_no_numbers_are_told(compiled: Ops) -> None:
    if "told some" not in compiled.models:
        pytest.skip("of float32 logits alone")
    z = numbers("float32", 1, 5, 519)
    z[0, 1, 3], z[0, 2], z[0, 3, 500] = torch.nan, torch.nan, torch.inf
    first, _, tokens, entropy = (each.to_numpy() for each in compiled.models["told some"].execute(buffer(z)))
    assert np.isnan(entropy[0]).tolist() == [False, True, True, True, False]
    for each in (first, tokens):
        assert ((each >= 0) & (each < 519)).all()
