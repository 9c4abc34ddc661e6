"""Ops of `kernels` for the model that writes text, against float64, in both dtypes.

Tokens of an expert are counted around the 12 of a tile; widths fill no vector, no panel, no pair of bfloat16 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.graphs import text_ops
from max_zimage.graphs.diffusion_gemma.feed_forward import DenseExperts, chosen
from tests.graphs.test_kernels import panels, product_op
from tests.references import kernels as references
from tests.references.op_modules import TORCH, Makers, Op, Ops, Typed, Wanted, buffer, check, compile_ops, numbers, run

HOST = DeviceRef.CPU()
FLOAT = DType.float32
EPSILON = 1e-5
EXPERTS = {"few": (5, 2, 44, 20), "odd": (4, 3, 45, 21), "usual": (8, 2, 128, 64)}
"""Name -> experts, those of a token, inputs, gates of an expert."""


class Plain(Typed):
    """The twin of the experts, on weights that are given."""

    def __init__(self, name: str, dtype: DType) -> None:
        count, self.each, hidden, width = EXPERTS[name]
        self.types = [
            TensorType(dtype, ["rows", "length", hidden], HOST),
            TensorType(FLOAT, ["rows", "length", count], HOST),
            TensorType(FLOAT, [count], HOST),
            TensorType(dtype, [count, 2 * width, hidden], HOST),
            TensorType(dtype, [count, hidden, width], HOST),
        ]

    def forward(self, x: Tensor, scores: Tensor, scales: Tensor, gate_up: Tensor, down: Tensor) -> list[Tensor]:
        return [DenseExperts.mixed(x, *chosen(scores, scales, self.each), gate_up, down)]


def expert_op(name: str, dtype: DType, each: int | None = None, gates: int | None = None) -> Op:
    """With other parameters than the sizes that are given, if they are named."""
    count, usual, hidden, width = EXPERTS[name]
    types = [
        TensorType(dtype, ["rows", "length", hidden], HOST),
        TensorType(FLOAT, ["rows", "length", count], HOST),
        TensorType(FLOAT, [count], HOST),
        *(TensorType(dtype, list(shape), HOST) for shape in text_ops.expert_shapes(count, hidden, width, dtype)),
    ]
    return Op(partial(text_ops.experts, each=each or usual, width=gates or width), types)


class Norms(Typed):
    """Both ops around the parts of a layer."""

    def __init__(self, dtype: DType) -> None:
        stream, weight = TensorType(dtype, ["rows", "length", 44], HOST), TensorType(dtype, [44], HOST)
        self.types = [*[stream] * 3, *[weight] * 4, TensorType(dtype, [1], HOST)]

    def forward(self, x: Tensor, branch: Tensor, other: Tensor, *weights: Tensor) -> list[Tensor]:
        *norms, scalar = weights
        added = text_ops.added_norms(x, branch, norms[0], norms[1:], factor=0.3, epsilon=EPSILON)
        return [*added, text_ops.joined_norms(x, (branch, other), norms[1:], scalar, epsilon=EPSILON)]


def makers_of(name: ModelDtype) -> Makers:
    dtype = DType[name]
    makers: dict[str, Callable[[], Typed]] = {f"experts {each}": partial(expert_op, each, dtype) for each in EXPERTS}
    makers |= {
        "norms": partial(Norms, dtype),
        "too many": partial(expert_op, "few", dtype, each=6),
        "too wide": partial(expert_op, "few", dtype, gates=40),
    }
    makers |= {f"gelu {outputs}": partial(product_op, text_ops.gelu_linear, outputs, dtype) for outputs in (16, 21)}
    return makers


OPS = Wanted(makers=makers_of)


@pytest.fixture(scope="module", params=DTYPES)
def compiled(request: pytest.FixtureRequest, compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Ops:
    """Every op in one dtype."""
    return compiled_ops["test_text_ops", request.param]


Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def given(name: str, dtype: ModelDtype, rows: int, length: int) -> Given:
    count, _, hidden, width = EXPERTS[name]
    return (
        numbers(dtype, rows, length, hidden),
        numbers("float32", rows, length, count, scale=2.0, seed=1),
        1 + numbers("float32", count, scale=0.2, seed=2),
        numbers(dtype, count, 2 * width, hidden, scale=hidden**-0.5, seed=3),
        numbers(dtype, count, hidden, width, scale=width**-0.5, seed=4),
    )


def buffers(inputs: Given) -> list[Buffer]:
    *tokens, gate_up, down = inputs
    return [*map(buffer, tokens), panels(gate_up, "gated"), panels(down, "panels")]


def exact(inputs: Given, each: int) -> torch.Tensor:
    x, scores, shares, gate_up, down = inputs
    return references.experts(x.double(), scores, shares.double(), gate_up.double(), down.double(), each)


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 5), (1, 31), (2, 64)])
def test_experts(compiled: Ops, name: str, rows: int, length: int) -> None:
    inputs, each = given(name, compiled.dtype, rows, length), EXPERTS[name][1]
    ours = run(compiled.models[f"experts {name}"], *buffers(inputs))
    check(ours, references.experts(*inputs, each), exact(inputs, each))


@pytest.mark.slow
def test_the_twin_of_the_experts() -> None:
    """Its products are MAX's, which take long to compile."""
    inputs = given("few", "float32", 2, 13)
    model = compile_ops({"plain": partial(Plain, "few", FLOAT)}, "float32")["plain"]
    check(run(model, *map(buffer, inputs)), references.experts(*inputs, 2), exact(inputs, 2))


def test_a_token_is_the_same_alone_and_beside_others(compiled: Ops) -> None:
    inputs = given("usual", compiled.dtype, 1, 200)
    together = run(compiled.models["experts usual"], *buffers(inputs))
    for token in (0, 77, 199):
        alone = inputs[0][:, token : token + 1], inputs[1][:, token : token + 1], *inputs[2:]
        assert torch.equal(run(compiled.models["experts usual"], *buffers(alone))[0, 0], together[0, token])


def test_of_equal_scores_the_first_ones_decide_and_one_expert_may_have_all_tokens(compiled: Ops) -> None:
    x, scores, shares, gate_up, down = given("few", compiled.dtype, 1, 30)
    scores = torch.zeros_like(scores)
    scores[..., 3] = 1.0
    inputs = x, scores, shares, gate_up, down
    check(run(compiled.models["experts few"], *buffers(inputs)), references.experts(*inputs, 2), exact(inputs, 2))


def test_what_is_no_number_stays_with_its_token(compiled: Ops) -> None:
    inputs = given("few", compiled.dtype, 1, 20)
    inputs[1][0, 3], inputs[0][0, 7, 1] = torch.nan, torch.nan
    found = run(compiled.models["experts few"], *buffers(inputs))[0].isfinite().all(dim=-1)
    assert found.tolist() == [token not in (3, 7) for token in range(20)]


def test_one_score_that_is_no_number_is_not_passed_over(compiled: Ops) -> None:
    """Wherever it stands: no comparison with it holds, and the others would decide."""
    inputs = given("few", compiled.dtype, 1, 10)
    for token in range(5):
        inputs[1][0, token, token] = torch.nan
    found = run(compiled.models["experts few"], *buffers(inputs))[0].isfinite()
    assert found.any(dim=-1).tolist() == [token >= 5 for token in range(10)]
    assert found[5:].all()


def test_no_tokens_are_no_tokens(compiled: Ops) -> None:
    (out,) = compiled.models["experts few"].execute(*buffers(given("few", compiled.dtype, 1, 0)))
    assert list(out.shape) == [1, 0, 44]


@pytest.mark.parametrize("inputs", [2, 130])
def test_a_gate_of_gelu(compiled: Ops, inputs: int) -> None:
    for outputs in (16, 21):
        x, weight = numbers(compiled.dtype, 2, 13, inputs), numbers(compiled.dtype, 2 * outputs, inputs, seed=1)
        ours = run(compiled.models[f"gelu {outputs}"], buffer(x), panels(weight, "gated"))
        check(ours, references.gelu_linear(x, weight), references.gelu_linear(x.double(), weight.double()))


def test_far_gates_of_gelu(compiled: Ops) -> None:
    """Where a power of a gate overflows, nothing or all of it passes."""
    gates = [-1e30, -50.0, -3.0, 0.0, 3.0, 50.0, 1e12]
    x = torch.tensor([[[gate, 1.0] for gate in gates]]).to(TORCH[compiled.dtype])
    weight = torch.zeros(32, 2).to(x.dtype)
    weight[:16, 0], weight[16:, 1] = 1.0, 1.0
    ours = run(compiled.models["gelu 16"], buffer(x), panels(weight, "gated"))
    exact = references.gelu_linear(x.double(), weight.double())
    torch.testing.assert_close(ours, exact, rtol=2**-6, atol=1e-5)


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 35)])
def test_norms_around_the_parts_of_a_layer(compiled: Ops, rows: int, length: int) -> None:
    streams = [numbers(compiled.dtype, rows, length, 44, scale=1.5 + seed, seed=seed) for seed in range(3)]
    weights = [1 + numbers(compiled.dtype, 44, scale=0.2, seed=seed) for seed in range(3, 7)]
    scalar = numbers(compiled.dtype, 1, seed=7)
    found = compiled.models["norms"].execute(*map(buffer, (*streams, *weights, scalar)))

    def reference(dtype: torch.dtype) -> list[torch.Tensor]:
        x, branch, other, *norms = (each.to(dtype) for each in (*streams, *weights))
        first, second, third, fourth = (partial(references.normed, weight=each, epsilon=EPSILON) for each in norms)
        added = x + first(branch)
        joined = (x + fourth(second(branch) + third(other))) * scalar.to(dtype)
        return [added, second(added), third(added), fourth(added) * 0.3, joined]

    for ours, plain, exact in zip(found, reference(TORCH[compiled.dtype]), reference(torch.float64), strict=True):
        check(torch.from_dlpack(ours).double(), plain, exact)


def test_sizes_that_do_not_belong_together_are_refused(compiled: Ops) -> None:
    inputs = buffers(given("few", compiled.dtype, 1, 3))
    with pytest.raises(Exception, match="a token cannot be sent to 6 of 5 experts"):
        compiled.models["too many"].execute(*inputs)
    with pytest.raises(Exception, match="an expert has 40 gates, and the packed ones have others"):
        compiled.models["too wide"].execute(*inputs)
