"""A layer of the stack, and what begins and ends it.

    a = x + norm(attention(norm x))
    x' = (a + norm(norm(dense(norm a)) + norm(experts(norm a), as the router of a itself says))) · scalar

Every norm has a weight of its own; the scalar multiplies the whole stream, and the encoder's is another than the
decoder's.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, DiffusionGemmaDecoderTextLayer,
DiffusionGemmaSelfConditioning and DiffusionGemmaTextScaledWordEmbedding.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor

from max_zimage.graphs.diffusion_gemma.attention import Attention, Norm, unit_norm
from max_zimage.graphs.diffusion_gemma.feed_forward import GeluMlp, Router, experts
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec, LayerType


class Layer(Module[..., tuple[Tensor, Tensor, Tensor]]):
    """Attention, then a dense network and experts side by side."""

    def __init__(self, spec: DiffusionGemmaSpec, kind: LayerType) -> None:
        def norm() -> Norm:
            return Norm(spec.hidden_size, eps=spec.norm_eps)

        self.input_layernorm = norm()
        self.self_attn = Attention(spec, spec.shape(kind))
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = GeluMlp(spec.hidden_size, spec.intermediate_size)
        self.post_feedforward_layernorm_1 = norm()
        self.router = Router(spec)
        self.pre_feedforward_layernorm_2 = norm()
        self.experts = experts(spec)
        self.post_feedforward_layernorm_2 = norm()
        self.post_feedforward_layernorm = norm()

    def forward(
        self, x: Tensor, scalar: Tensor, rope: Tensor, mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[rows, length, hidden_size] -> the same, and keys and values; see `Attention` for the arguments."""
        mixed, key, value = self.self_attn(self.input_layernorm(x), rope, mask, *past)
        x = x + self.post_attention_layernorm(mixed)
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        chosen = self.experts(self.pre_feedforward_layernorm_2(x), *self.router(x))
        both = dense + self.post_feedforward_layernorm_2(chosen)
        return (x + self.post_feedforward_layernorm(both)) * scalar, key, value

    def keys_and_values(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values alone: all that is wanted of the encoder's last layer."""
        _, key, value = self.self_attn.projected(self.input_layernorm(x), rope)
        return key, value


class ScaledEmbedding(Module[[Tensor], Tensor]):
    """Rows of the embedding times √hidden_size, a factor that has the embedding's dtype; and the head tied to it."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.weight = Tensor.zeros([spec.vocab_size, spec.hidden_size])
        self.factor = spec.hidden_size**0.5

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 [rows, length] -> [rows, length, hidden_size]."""
        return self.scaled(F.gather(self.weight, ids, axis=0))

    def mixed(self, chances: Tensor) -> Tensor:
        """[rows, length, vocab_size] -> the mean of all embeddings under it, [rows, length, hidden_size]."""
        return self.scaled(chances @ self.weight)

    def logits(self, x: Tensor) -> Tensor:
        """[rows, length, hidden_size] -> float32 [rows, length, vocab_size]."""
        return (x @ self.weight.T).cast(DType.float32)

    def scaled(self, x: Tensor) -> Tensor:
        """Times √hidden_size."""
        return x * F.constant(self.factor, x.dtype, device=x.device)


class SelfConditioning(Module[[Tensor, Tensor], Tensor]):
    """What the last step thought of the canvas, added to the canvas's embedding."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.epsilon = spec.norm_eps
        self.pre_norm = Norm(spec.hidden_size, eps=spec.norm_eps)
        self.mlp = GeluMlp(spec.hidden_size, spec.intermediate_size)

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        """[rows, length, hidden_size] of both -> the same; a signal of zeros adds nothing, and the last norm stays."""
        return unit_norm(x + self.mlp(self.pre_norm(signal)), self.epsilon)
