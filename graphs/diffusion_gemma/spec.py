"""Shape of a DiffusionGemma, as its configuration decides it.

Reference: transformers models/diffusion_gemma/configuration_diffusion_gemma.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LayerType = Literal["sliding_attention", "full_attention"]

TOP = 64
"""How many of the likeliest tokens `denoise` names, as MAX's decoder does."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Attention of one type of layer.

    Attributes:
        key_heads: Key and value heads.
        head_dim: Their width, and that of the query heads.
        has_values: Whether values have a product of their own; else they are the keys before norm and rotation.
        rope_theta: Rotary base.
        rotated: Pairs of a head that turn, from the first one on; the others stand still.
    """

    key_heads: int
    head_dim: int
    has_values: bool
    rope_theta: float
    rotated: int


@dataclass(frozen=True, kw_only=True)
class DiffusionGemmaSpec:
    """Shape of a DiffusionGemma without its vision tower.

    Raises:
        ValueError: If sizes do not fit each other.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    expert_size: int
    num_experts: int
    experts_per_token: int
    num_heads: int
    sliding: LayerShape
    full: LayerShape
    layer_types: tuple[LayerType, ...]
    sliding_window: int
    norm_eps: float
    softcap: float
    canvas_length: int
    max_positions: int

    def __post_init__(self) -> None:
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"top_k_experts {self.experts_per_token} must be at most num_experts {self.num_experts}: a token "
                "cannot be sent to more experts than there are"
            )
        for name, shape in (("num_key_value_heads", self.sliding), ("num_global_key_value_heads", self.full)):
            if self.num_heads % shape.key_heads:
                raise ValueError(
                    f"num_attention_heads {self.num_heads} must be divisible by {name} {shape.key_heads}: query heads "
                    "share key-value heads evenly"
                )
        for name, shape in (("head_dim", self.sliding), ("global_head_dim", self.full)):
            if shape.head_dim % 2:
                raise ValueError(f"{name} {shape.head_dim} must be even: rotary positions turn pairs")
        if self.full.rotated < 1:
            raise ValueError(
                f"global_head_dim {self.full.head_dim} is too small for its partial_rotary_factor: no pair would turn"
            )
        if self.sliding_window < 2:
            raise ValueError(f"sliding_window {self.sliding_window} must be at least 2: one token sees the one before")

    def shape(self, layer: LayerType) -> LayerShape:
        """Attention of a type of layer."""
        return self.sliding if layer == "sliding_attention" else self.full

    def count(self, layer: LayerType) -> int:
        """How many layers there are of a type."""
        return self.layer_types.count(layer)

    def places(self) -> tuple[int, ...]:
        """Layer -> which one it is among those of its type, from 0 on."""
        return tuple(self.layer_types[:index].count(each) for index, each in enumerate(self.layer_types))

    @property
    def top(self) -> int:
        """How many of the likeliest tokens are named: 64, or the whole of a smaller vocabulary."""
        return min(TOP, self.vocab_size)
