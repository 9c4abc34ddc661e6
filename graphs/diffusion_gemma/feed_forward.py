"""What stands behind attention in a layer: a dense network, and beside it experts that a router chooses.

    dense:   down(gelu(gate x) · (up x))
    router:  softmax(proj(unit norm(x) · scale / √hidden_size)), the largest, divided by their sum, times a scale each
    experts: sum of weight · down(gelu(gate x) · (up x)) over those chosen

An NVIDIA GPU computes the experts that are chosen, by MAX's grouped products. Elsewhere all are computed, as two
products of matrices, and those that are not chosen weigh nothing: exact, and at a small size cheaper than to gather.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, DiffusionGemmaText4MLP,
DiffusionGemmaTextRouter and DiffusionGemmaTextExperts.
"""

from __future__ import annotations

from max.driver import Device
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.nn.common_layers.functional_kernels import (
    grouped_matmul_ragged,
    moe_create_indices,
    moe_finalize,
)
from max.experimental.tensor import Tensor, defaults
from max.graph import DeviceRef

from max_zimage.graphs.diffusion_gemma.attention import unit_norm
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec
from max_zimage.graphs.kernel_library import is_nvidia
from max_zimage.graphs.linear import linear


class GeluMlp(Module[[Tensor], Tensor]):
    """down(gelu(gate x) · (up x)), with gate and up fused into one matrix."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        self.gate_up_proj = linear(hidden_size, 2 * intermediate_size)
        self.down_proj = linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, length, hidden_size] -> the same."""
        return self.down_proj(gated(self.gate_up_proj(x)))


class Router(Module[[Tensor], tuple[Tensor, Tensor]]):
    """Which experts a token is sent to, and how much each of them counts."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.spec = spec
        self.proj = linear(spec.hidden_size, spec.num_experts)
        self.scale = Tensor.zeros([spec.hidden_size])
        self.per_expert_scale = Tensor.zeros([spec.num_experts])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose.

        Args:
            x: [rows, length, hidden_size], not normed.

        Returns:
            float32 weights and int64 experts, [rows, length, experts_per_token] each.
        """
        spec = self.spec
        scores = self.proj(unit_norm(x, spec.norm_eps) * self.scale * spec.hidden_size**-0.5)
        chances, chosen = F.top_k(F.softmax(scores.cast(DType.float32)), spec.experts_per_token, axis=-1)
        scales = F.gather(self.per_expert_scale, chosen, axis=0).cast(DType.float32)
        return chances / F.sum(chances, axis=-1) * scales, chosen


def experts(spec: DiffusionGemmaSpec) -> DenseExperts | GroupedExperts:
    """A layer (x, weights, chosen) -> like x, for the device that parameters are declared on."""
    return GroupedExperts(spec) if has_grouped_products(defaults()[1].devices[0]) else DenseExperts(spec)


class DenseExperts(Module[[Tensor, Tensor, Tensor], Tensor]):
    """Every expert on every token.

    Weights are two matrices: gate and up of each expert one below the other, [experts · 2 expert_size, hidden_size],
    and all down products side by side, [hidden_size, experts · expert_size].
    """

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.count, self.width = spec.num_experts, spec.expert_size
        self.gate_up_proj = linear(spec.hidden_size, 2 * self.count * self.width)
        self.down_proj = linear(self.count * self.width, spec.hidden_size)

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Weigh all experts.

        Args:
            x: [rows, length, hidden_size].
            weights: float32 [rows, length, experts_per_token].
            chosen: int64 like `weights`.

        Returns:
            Like `x`.
        """
        rows, length, _ = x.shape
        every = F.constant([*range(self.count)], DType.int64, device=x.device)
        is_chosen = (F.unsqueeze(chosen, -1) == every).cast(DType.float32)  # [rows, length, chosen, experts]
        spread = F.reshape(F.sum(is_chosen * F.unsqueeze(weights, -1), axis=2), [rows, length, self.count, 1])
        inside = gated(F.reshape(self.gate_up_proj(x), [rows, length, self.count, 2 * self.width]))
        weighed = (inside.cast(DType.float32) * spread).cast(x.dtype)
        return self.down_proj(F.reshape(weighed, [rows, length, self.count * self.width]))


class GroupedExperts(Module[[Tensor, Tensor, Tensor], Tensor]):
    """The experts that are chosen, each on all of its tokens at once; on a GPU only.

    Reference: max.experimental.nn.common_layers.moe, MoE.
    """

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.count, self.each = spec.num_experts, spec.experts_per_token
        self.gate_up_proj = Tensor.zeros([self.count, 2 * spec.expert_size, spec.hidden_size])
        self.down_proj = Tensor.zeros([self.count, spec.hidden_size, spec.expert_size])

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The same as `DenseExperts`."""
        rows, length, width = x.shape
        tokens = rows * length
        order, starts, restore, ids, usage = moe_create_indices(
            F.reshape(chosen, [tokens * self.each]).cast(DType.int32), self.count
        )
        sent = F.gather(F.reshape(x, [tokens, width]), (order // self.each).cast(DType.int32), axis=0)
        inside = gated(grouped_matmul_ragged(sent, self.gate_up_proj, starts, ids, usage))
        outside = grouped_matmul_ragged(inside, self.down_proj, starts, ids, usage)
        mixed = moe_finalize(outside, restore, F.reshape(weights, [tokens, self.each]), x.dtype)
        return F.reshape(mixed, [rows, length, width])


def has_grouped_products(device: Device | DeviceRef) -> bool:
    """Whether experts are computed by grouped products on a device, and their weights have that form."""
    return is_nvidia(device)


def gated(both: Tensor) -> Tensor:
    """gelu(gate) · up of the two halves of the last axis, by the approximation with tanh."""
    half = int(both.shape[-1]) // 2
    gate, up = F.split(both, [half, half], axis=-1)
    return F.gelu(gate, approximate="tanh") * up
