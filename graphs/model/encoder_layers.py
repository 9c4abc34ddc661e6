"""Qwen3 layer by layer: any of its hidden states, or a weighted sum of several.

    start: ids -> embedding, state 0
    layer: state k -> state k + 1, before any norm                  (one graph, called with each layer's weights)
    norm:  the last layer's state -> the last hidden state

States are numbered as transformers' `hidden_states` are. Every graph adds its state to the sum so far, times that
state's weight, in float32; a state that is not wanted has weight 0, and layers above the last one that is are not
called. So one small graph serves every choice, and only layers that run have their weights on the device.

A language model reads on behind what it has read, with another graph for its layers:

    cached layer: state k of new tokens, keys and values so far -> state k + 1, keys and values with theirs

Reference: transformers models/qwen3/modeling_qwen3.py, `output_hidden_states`.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import CACHED_TOKENS, CAPTION_PADDED, NEW_TOKENS, PROMPTS, SEEN_TOKENS
from max_zimage.graphs.linear import embedding
from max_zimage.graphs.model.text_encoder import EncoderBlock, TextEncoderSpec


class EncoderStart(Module[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]):
    """Token ids to the first hidden state, and the sum that begins with it."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        self.embed_tokens = embedding(spec.vocab_size, spec.hidden_size)

    def forward(self, tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Begin.

        Args:
            tokens: int64 [prompts, caption_padded].
            weight: float32 [1], of the first hidden state.

        Returns:
            The state [prompts, caption_padded, hidden_size] in the model's dtype, the sum in float32, and the sum in
            the model's dtype.
        """
        x = self.embed_tokens(tokens)
        mixed = weight * x.cast(DType.float32)
        return x, mixed, mixed.cast(x.dtype)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        tokens = TensorType(DType.int64, [PROMPTS, CAPTION_PADDED], device)
        return (tokens, TensorType(DType.float32, [1], device))


class EncoderLayer(Module[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]):
    """One hidden state to the next."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        self.spec = spec
        self.layer = EncoderBlock(spec)

    def forward(self, x: Tensor, mixed: Tensor, weight: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One layer.

        Args:
            x: The state below, [prompts, caption_padded, hidden_size] in the model's dtype.
            mixed: The sum so far, float32 of the same shape.
            weight: float32 [1], of the state above.
            rope: float32 [caption_padded, head_dim/2, 2].

        Returns:
            As `EncoderStart`, of the state above.
        """
        x = self.layer(x, rope)
        return _added(x, mixed, weight, x)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        rope = TensorType(DType.float32, [CAPTION_PADDED, self.spec.head_dim // 2, 2], device)
        return (*_sum_types(self.spec, dtype, device), rope)


class CachedLayer(Module[..., tuple[Tensor, Tensor, Tensor]]):
    """One hidden state to the next, of tokens behind others whose keys and values were kept."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        self.spec = spec
        self.layer = EncoderBlock(spec)

    def forward(
        self, x: Tensor, rope: Tensor, mask: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer.

        Args:
            x: The state below, of new tokens, [prompts, new_tokens, hidden_size] in the model's dtype.
            rope: float32 [new_tokens, head_dim/2, 2].
            mask: float32 [prompts, new_tokens, seen_tokens], added to the scores.
            keys: Of what was read, [prompts, cached_tokens, num_kv_heads, head_dim].
            values: Like `keys`.

        Returns:
            The state above; keys and values of all that is seen, [prompts, seen_tokens, num_kv_heads, head_dim].
        """
        return self.layer.read_on(x, rope, mask, keys, values)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        spec = self.spec
        past = TensorType(dtype, [PROMPTS, CACHED_TOKENS, spec.num_kv_heads, spec.head_dim], device)
        return (
            TensorType(dtype, [PROMPTS, NEW_TOKENS, spec.hidden_size], device),
            TensorType(DType.float32, [NEW_TOKENS, spec.head_dim // 2, 2], device),
            TensorType(DType.float32, [PROMPTS, NEW_TOKENS, SEEN_TOKENS], device),
            *(past, past),
        )


class EncoderNorm(Module[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]):
    """The last layer's state behind the final norm."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        self.spec = spec
        self.norm = RMSNorm(spec.hidden_size, eps=spec.norm_eps)

    def forward(self, x: Tensor, mixed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last hidden state; arguments and results are those of `EncoderLayer`."""
        return _added(x, mixed, weight, self.norm(x))

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return _sum_types(self.spec, dtype, device)


def _added(x: Tensor, mixed: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mixed = mixed + weight * state.cast(DType.float32)
    return x, mixed, mixed.cast(x.dtype)


def _sum_types(spec: TextEncoderSpec, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
    shape = (PROMPTS, CAPTION_PADDED, spec.hidden_size)
    return (
        TensorType(dtype, shape, device),
        TensorType(DType.float32, shape, device),
        TensorType(DType.float32, [1], device),
    )
