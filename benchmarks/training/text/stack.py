"""The layers of a DiffusionGemma over all tokens of a step of training at once.

transformers runs encoder and decoder one after the other. They share their weights, so that one pass over the tokens of
both, in which a mask says who sees whom, computes the same with half as many operations of twice as many rows. Products
are in bfloat16 where the processor has them, everything else in float32; what lies between the products is compiled.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def products() -> torch.dtype:
    """Of matrix products in training: bfloat16 where the CPU has them, else float32, which is faster than emulation."""
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Where tokens are and what they see, for layers of one kind.

    Attributes:
        cos: float32 [batch, tokens, 1, head_dim].
        sin: The same.
        mask: Added to scores: 0 where a token sees another one, else minus infinity, [batch, 1, tokens, tokens].
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor


class Stack:
    """Computes layers of a model, compiled or operation by operation."""

    def __init__(self, dtype: torch.dtype, *, is_compiled: bool) -> None:
        """Nothing is compiled before it is needed.

        Args:
            dtype: Of matrix products.
            is_compiled: Whether to compile, which takes a minute or so for every number of tokens and is worth it for
                hundreds of steps.

        Raises:
            ValueError: If there is no C++ compiler to compile with.
        """
        self._dtype = dtype
        self._before, self._after, self._gate = before_experts, after_experts, gate
        if is_compiled:
            if not any(map(shutil.which, ("c++", "g++", "clang++"))):
                raise ValueError("compiled training needs a C++ compiler, there is no c++, g++ or clang++; use --eager")
            compiled: Any = torch.compile  # its declared arguments leave out the limit, of kinds times widths here
            how = {"fullgraph": True, "recompile_limit": 32}
            fixed, free = compiled(dynamic=False, **how), compiled(dynamic=True, **how)
            self._before, self._after, self._gate = fixed(before_experts), free(after_experts), free(gate)

    def through(self, layers: Sequence[Any], x: Tensor, sights: dict[str, Sight]) -> Tensor:
        """A residual stream behind all layers, float32 [batch, tokens, hidden] as before them."""
        for layer in layers:
            part = layer.self_attn
            groups = part.q_proj.out_features // part.head_dim // part.num_key_value_groups
            x, dense, chances, inputs = self._before(
                x, sights[part.layer_type], groups, self._attention_of(part), self._rest_of(layer)
            )
            found = self._experts(layer, inputs, chances)
            norms = layer.post_feedforward_layernorm_2.weight, layer.post_feedforward_layernorm.weight
            x = self._after(x, dense, found, *norms, layer.layer_scalar)
        return x

    def _attention_of(self, part: Any) -> tuple[Tensor, ...]:
        three = [each.weight for each in (part.q_proj, part.k_proj, part.v_proj) if each is not None]
        return (
            torch.cat(three).to(self._dtype),
            part.o_proj.weight.to(self._dtype),
            part.q_norm.weight,
            part.k_norm.weight,
        )

    def _rest_of(self, layer: Any) -> tuple[Tensor, ...]:
        mlp, router = layer.mlp, layer.router
        return (
            layer.input_layernorm.weight,
            layer.post_attention_layernorm.weight,
            layer.pre_feedforward_layernorm.weight,
            torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(self._dtype),
            mlp.down_proj.weight.to(self._dtype),
            layer.post_feedforward_layernorm_1.weight,
            router.scale * router.scalar_root_size,
            router.proj.weight,
            layer.pre_feedforward_layernorm_2.weight,
        )

    def _experts(self, layer: Any, inputs: Tensor, chances: Tensor) -> Tensor:
        """What the chosen experts add, float32 [tokens, hidden]; each computes its own tokens only.

        Args:
            layer: Of the model.
            inputs: [tokens, hidden] in the products' format.
            chances: float32 [tokens, experts].
        """
        router, experts = layer.router, layer.experts
        shares, choice = chances.topk(router.config.top_k_experts, dim=-1)
        shares = shares / shares.sum(dim=-1, keepdim=True) * router.per_expert_scale[choice]
        order = choice.flatten().argsort(stable=True)
        counts = choice.flatten().bincount(minlength=experts.num_experts).tolist()
        mine = inputs.index_select(0, order // choice.shape[1]).split(counts)
        ups, downs = (each.to(self._dtype).unbind() for each in (experts.gate_up_proj, experts.down_proj))
        hidden = self._gate(torch.cat([F.linear(part, up) for part, up in zip(mine, ups, strict=True)]))
        found = torch.cat([F.linear(part, down) for part, down in zip(hidden.split(counts), downs, strict=True)])
        by_token = found.index_select(0, order.argsort()).unflatten(0, choice.shape)
        return (by_token.float() * shares[..., None]).sum(dim=1)


def root_mean_square(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Values over their root mean square, times a weight if there is one."""
    x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)
    return x if weight is None else x * weight


def gate(both: Tensor) -> Tensor:
    """gelu(first half) * second half, in the format that it is given."""
    first, second = both.float().chunk(2, dim=-1)
    return (F.gelu(first, approximate="tanh") * second).to(both.dtype)


def before_experts(
    x: Tensor, sight: Sight, groups: int, attention: tuple[Tensor, ...], rest: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A layer's attention, its dense part, and what its experts start from.

    Args:
        x: float32 [batch, tokens, hidden].
        sight: Of the layer's kind.
        groups: Heads of keys and values.
        attention: See `Stack`.
        rest: See `Stack`.

    Returns:
        The stream behind the attention; what the dense part adds, normed; chances of experts, float32 [batch * tokens,
        experts]; the experts' inputs [batch * tokens, hidden].
    """
    before, behind, before_dense, gate_up, down, behind_dense, scale, router, before_chosen = rest
    seen = _attended(root_mean_square(x, before), sight, groups, *attention)
    x = x + root_mean_square(seen.float(), behind)
    dense = F.linear(gate(F.linear(root_mean_square(x, before_dense).to(down.dtype), gate_up)), down)
    tokens = x.flatten(0, 1)
    chances = F.linear(root_mean_square(tokens) * scale, router).softmax(dim=-1)
    inputs = root_mean_square(tokens, before_chosen).to(down.dtype)
    return x, root_mean_square(dense.float(), behind_dense), chances, inputs


def after_experts(x: Tensor, dense: Tensor, found: Tensor, norm: Tensor, last: Tensor, scalar: Tensor) -> Tensor:
    """The stream behind a layer."""
    added = dense + root_mean_square(found.view_as(x), norm)
    return (x + root_mean_square(added, last)) * scalar


def _attended(
    x: Tensor, sight: Sight, groups: int, inward: Tensor, outward: Tensor, of_query: Tensor, of_key: Tensor
) -> Tensor:
    """Attention of heads that share keys and values by groups; without weights for values these are the raw keys."""
    batch, tokens, _ = x.shape
    width = of_query.shape[0]
    count = outward.shape[1] // width
    heads = F.linear(x.to(inward.dtype), inward).float().unflatten(-1, (-1, width))
    key, value = heads[:, :, count : count + groups], heads[:, :, -groups:]
    query = _turned(root_mean_square(heads[:, :, :count], of_query), sight).transpose(1, 2).to(inward.dtype)
    key = _turned(root_mean_square(key, of_key), sight).permute(0, 2, 3, 1).to(inward.dtype)
    value = root_mean_square(value).transpose(1, 2).to(inward.dtype)
    scores = query.reshape(batch, groups, -1, width) @ key
    scores = scores.float().view(batch, count, tokens, tokens) + sight.mask
    shares = scores.softmax(dim=-1).to(inward.dtype).view(batch, groups, -1, tokens)
    seen = (shares @ value).view(batch, count, tokens, width)
    return F.linear(seen.transpose(1, 2).flatten(2), outward)


def _turned(x: Tensor, sight: Sight) -> Tensor:
    """Rotary embedding of halves."""
    first, second = x.chunk(2, dim=-1)
    return x * sight.cos + torch.cat([-second, first], dim=-1) * sight.sin
