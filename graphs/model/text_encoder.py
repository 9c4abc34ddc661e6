"""Qwen3 as a text encoder: token ids to the hidden state that conditions the transformer.

    ids -> embedding -> [block] x layers_used -> features
    block: x + out(attention(norm x)), then x + down(silu(gate) · up) of norm x

Only the layers below the chosen hidden state are built; the final norm and the language-model head never are. Attention
is causal, so padding at the end of a caption cannot reach the rows before it and needs no mask.

Reference: transformers models/qwen3/modeling_qwen3.py; diffusers pipelines/z_image/pipeline_z_image.py, _encode_prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.compilation import as_subgraph
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.nn.sequential import ModuleList
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import CAPTION_PADDED, PROMPTS
from max_zimage.graphs.linear import embedding, gated_linear, linear
from max_zimage.graphs.model.attention import rotary_attention
from max_zimage.graphs.model.attention_backends import chosen_backend
from max_zimage.graphs.model.cached_attention import Heads, behind, cached_attention

HIDDEN_LAYER = -2
"""The hidden state that Z-Image was trained on."""


@dataclass(frozen=True, kw_only=True)
class TextEncoderSpec:
    """Shape of a Qwen3 text encoder.

    Raises:
        ValueError: If the heads cannot be shared evenly or a size is not positive.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    rope_theta: float
    max_positions: int

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"text encoder: {self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads"
                " evenly"
            )
        if self.num_layers < 2:
            raise ValueError(f"text encoder: hidden state -2 needs at least 2 layers, got {self.num_layers}")

    def layers_used(self, hidden_layer: int) -> int:
        """Number of layers that produce a hidden state.

        Args:
            hidden_layer: Index into the list [embeddings, after layer 1, ..., after the last layer]; negative counts
                from the end.

        Returns:
            How many layers run, in [0, num_layers).

        Raises:
            ValueError: If the index is out of range, or names the last state, which the final norm belongs to.
        """
        states = self.num_layers + 1
        if not -states <= hidden_layer < states or hidden_layer % states == self.num_layers:
            raise ValueError(
                f"hidden_layer must be in [{-states}, -2] or [0, {self.num_layers - 1}], got {hidden_layer}: the last "
                "state has passed the norm of the language-model head, which is not loaded"
            )
        return hidden_layer % states


class TextEncoder(Module[[Tensor, Tensor], Tensor]):
    """Token ids to features, for all prompts of a request at once."""

    def __init__(self, spec: TextEncoderSpec, layers_used: int) -> None:
        self.spec = spec
        self.embed_tokens = embedding(spec.vocab_size, spec.hidden_size)
        self.layers = ModuleList(EncoderBlock(spec) for _ in range(layers_used))

    def forward(self, tokens: Tensor, rope: Tensor) -> Tensor:
        """Features of every position; those at and beyond a caption's length are to be ignored.

        Args:
            tokens: int64 [prompts, caption_padded].
            rope: float32 [caption_padded, head_dim/2, 2].

        Returns:
            [prompts, caption_padded, hidden_size] in the model's dtype.
        """
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = as_subgraph(layer, name="encoder_block")(x, rope)
        return x

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return (
            TensorType(DType.int64, [PROMPTS, CAPTION_PADDED], device),
            TensorType(DType.float32, [CAPTION_PADDED, self.spec.head_dim // 2, 2], device),
        )


class EncoderBlock(Module[[Tensor, Tensor], Tensor]):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        self.input_layernorm = RMSNorm(spec.hidden_size, eps=spec.norm_eps)
        self.self_attn = CausalAttention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, eps=spec.norm_eps)
        self.mlp = GatedMlp(spec)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """[prompts, length, hidden_size] -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), rope)
        return x + self.mlp(self.post_attention_layernorm(x))

    def read_on(self, x: Tensor, rope: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same behind what was read; see `CausalAttention.read_on` for arguments and what else is returned."""
        mixed, keys, values = self.self_attn.read_on(self.input_layernorm(x), rope, mask, *past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class CausalAttention(Module[[Tensor, Tensor], Tensor]):
    """Grouped-query attention with per-head RMSNorm of queries and keys."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        self.spec, self.backend = spec, chosen_backend()
        self.qkv_proj = linear(spec.hidden_size, (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim)
        self.o_proj = linear(spec.num_heads * spec.head_dim, spec.hidden_size)
        self.q_norm = RMSNorm(spec.head_dim, eps=spec.norm_eps)
        self.k_norm = RMSNorm(spec.head_dim, eps=spec.norm_eps)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """[prompts, length, hidden_size] -> the same."""
        spec = self.spec
        prompts, length = x.shape[0], x.shape[1]
        heads = spec.num_heads + 2 * spec.num_kv_heads
        qkv = F.reshape(self.qkv_proj(x), [prompts, length, heads, spec.head_dim])
        table = F.unsqueeze(rope, 0)
        mixed = rotary_attention(
            qkv, self.q_norm, self.k_norm, table, heads=spec.num_heads, causal=True, backend=self.backend
        )
        return self.o_proj(F.reshape(mixed, [prompts, length, spec.num_heads * spec.head_dim]))

    def read_on(self, x: Tensor, rope: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend to what was read, and to what is new.

        Args:
            x: [prompts, length, hidden_size].
            rope: float32 [length, head_dim/2, 2].
            mask: float32 [prompts, length, seen], added to the scores; what was read comes first.
            *past: Keys and values of what was read, [prompts, cached, num_kv_heads, head_dim] each.

        Returns:
            Like `x`; keys and values of all that is seen.
        """
        spec = self.spec
        prompts, length = x.shape[0], x.shape[1]
        heads = Heads(spec.num_heads, spec.num_kv_heads)
        qkv = F.reshape(self.qkv_proj(x), [prompts, length, heads.query + 2 * heads.key, spec.head_dim])
        norms = self.q_norm, self.k_norm
        before = past[0], past[1]
        mixed, *new = cached_attention(qkv, norms, rope, mask, before, heads=heads, scale=spec.head_dim**-0.5)
        keys, values = behind(before, (new[0], new[1]), mask.shape[2])
        return self.o_proj(F.reshape(mixed, [prompts, length, spec.num_heads * spec.head_dim])), keys, values


class GatedMlp(Module[[Tensor], Tensor]):
    """SwiGLU under Qwen3's names."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        self.gate_up_proj = gated_linear(spec.hidden_size, spec.intermediate_size)
        self.down_proj = linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[prompts, length, hidden_size] -> the same."""
        return self.down_proj(self.gate_up_proj(x))
