"""What stands behind attention in a layer: a dense network, and beside it experts that a router chooses.

    dense:   down(gelu(gate x) · (up x))
    router:  softmax(proj(unit norm(x) · scale / √hidden_size)), the largest, divided by their sum, times a scale each
    experts: sum of weight · down(gelu(gate x) · (up x)) over those chosen

On a CPU the experts that are chosen are computed, by an op of `kernels`. Elsewhere all are, in two plain products, and
what was not chosen weighs nothing: exact, and what the op is compared with. MAX 26.7 has grouped products for GPUs,
which compute the chosen alone, but its compiler gives those for Hopper up ("Coord is not a value type"). All experts
of a canvas of the published model are 16 times the chosen ones' operations; but its tokens choose nearly all of the
128 between them, so that the weights, which take longest to read, are read either way.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, DiffusionGemmaText4MLP,
DiffusionGemmaTextRouter and DiffusionGemmaTextExperts.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor, defaults

from max_zimage.graphs import text_ops
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec
from max_zimage.graphs.kernel_library import uses_cpu_kernels
from max_zimage.graphs.linear import gelu_gated, gelu_linear, linear
from max_zimage.graphs.model.cached_attention import unit_norm


class GeluMlp(Module[[Tensor], Tensor]):
    """down(gelu(gate x) · (up x)), with gate and up fused into one matrix."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        self.gate_up_proj = gelu_linear(hidden_size, intermediate_size)
        self.down_proj = linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, length, hidden_size] -> the same."""
        return self.down_proj(self.gate_up_proj(x))


class Router(Module[[Tensor], Tensor]):
    """How much each expert suits a token."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.spec = spec
        self.proj = linear(spec.hidden_size, spec.num_experts)
        self.scale = Tensor.zeros([spec.hidden_size])
        self.per_expert_scale = Tensor.zeros([spec.num_experts])

    def forward(self, x: Tensor) -> Tensor:
        """[rows, length, hidden_size], not normed -> float32 scores [rows, length, experts]."""
        return self.scores(unit_norm(x, self.spec.norm_eps) * self.scale * self.factor)

    def scores(self, normed: Tensor) -> Tensor:
        """The same of what is normed, with the scale and the factor."""
        return self.proj(normed).cast(DType.float32)

    @property
    def factor(self) -> float:
        """What is normed has the length 1 then, but for the scale."""
        return float(self.spec.hidden_size**-0.5)


def chosen(scores: Tensor, scales: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Which experts a token is sent to, and how much each of them counts.

    Args:
        scores: float32 [rows, length, experts].
        scales: [experts].
        each: Experts that a token is sent to.

    Returns:
        float32 weights and int64 experts, [rows, length, each] both.
    """
    chances, found = F.top_k(F.softmax(scores), each, axis=-1)
    factors = F.gather(scales, found, axis=0).cast(DType.float32)
    return chances / F.sum(chances, axis=-1) * factors, found


def experts(spec: DiffusionGemmaSpec) -> DenseExperts | ChosenExperts:
    """A layer (x, scores, scales) -> like x, for the dtype and device that parameters are declared in."""
    dtype, mesh = defaults()
    return ChosenExperts(spec) if uses_cpu_kernels(dtype, mesh.devices[0]) else DenseExperts(spec)


class DenseExperts(Module[[Tensor, Tensor, Tensor], Tensor]):
    """Every expert on every token, and what the router did not choose weighs nothing."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.each = spec.experts_per_token
        self.gate_up_proj = Tensor.zeros([spec.num_experts, 2 * spec.expert_size, spec.hidden_size])
        self.down_proj = Tensor.zeros([spec.num_experts, spec.hidden_size, spec.expert_size])

    def forward(self, x: Tensor, scores: Tensor, scales: Tensor) -> Tensor:
        """Weigh all experts.

        Args:
            x: [rows, length, hidden_size].
            scores: float32 [rows, length, experts].
            scales: [experts].

        Returns:
            Like `x`.
        """
        return self.mixed(x, *chosen(scores, scales, self.each), self.gate_up_proj, self.down_proj)

    @staticmethod
    def mixed(x: Tensor, weights: Tensor, found: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """All experts of given weights on `x`; see `chosen` for weights and which experts were found.

        The first product has the experts' matrices below each other, the second beside each other: it sums over them.
        """
        rows, length, width = x.shape
        tokens, (count, both, _), size = rows * length, map(int, gate_up.shape), int(down.shape[-1])
        every = F.constant([*range(count)], DType.int64, device=x.device)
        is_chosen = (F.unsqueeze(found, -1) == every).cast(DType.float32)  # [rows, length, chosen, experts]
        spread = F.sum(is_chosen * F.unsqueeze(weights, -1), axis=2)
        shares = F.reshape(spread, [tokens, count, 1])
        below = F.reshape(gate_up, [count * both, width])
        inside = gelu_gated(F.reshape(F.reshape(x, [tokens, width]) @ below.T, [tokens, count, both]))
        weighed = F.reshape((inside.cast(DType.float32) * shares).cast(x.dtype), [tokens, count * size])
        beside = F.reshape(F.permute(down, [1, 0, 2]), [int(down.shape[1]), count * size])
        return F.reshape(weighed @ beside.T, [rows, length, width])


class ChosenExperts(Module[[Tensor, Tensor, Tensor], Tensor]):
    """The experts that are chosen, each on its own tokens, on a CPU. Their weights are packed one by one."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.spec = spec
        sizes = spec.num_experts, spec.hidden_size, spec.expert_size
        gate_up, down = text_ops.expert_shapes(*sizes, defaults()[0])
        self.gate_up_proj, self.down_proj = Tensor.zeros(list(gate_up)), Tensor.zeros(list(down))

    def forward(self, x: Tensor, scores: Tensor, scales: Tensor) -> Tensor:
        """The same as `DenseExperts`."""
        each, width = self.spec.experts_per_token, self.spec.expert_size
        both = self.gate_up_proj, self.down_proj
        return text_ops.experts(x, scores, scales.cast(DType.float32), *both, each=each, width=width)
