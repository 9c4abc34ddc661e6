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

from max_zimage.graphs import text_ops
from max_zimage.graphs.diffusion_gemma.attention import Attention, Norm
from max_zimage.graphs.diffusion_gemma.feed_forward import GeluMlp, Router, experts
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec, LayerType
from max_zimage.graphs.kernel_library import uses_cpu_kernels
from max_zimage.graphs.model.cached_attention import unit_norm


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
        if uses_cpu_kernels(x.dtype, x.device):
            return self.fed_at_once(x, mixed, scalar), key, value
        x = x + self.post_attention_layernorm(mixed)
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        chosen = self.experts(self.pre_feedforward_layernorm_2(x), self.router(x), self.router.per_expert_scale)
        both = dense + self.post_feedforward_layernorm_2(chosen)
        return (x + self.post_feedforward_layernorm(both)) * scalar, key, value

    def fed_at_once(self, x: Tensor, mixed: Tensor, scalar: Tensor) -> Tensor:
        """What follows attention, with norms in two ops."""
        before, behind = self.post_attention_layernorm, self.post_feedforward_layernorm
        first, second, router = self.pre_feedforward_layernorm, self.pre_feedforward_layernorm_2, self.router
        weights = first.weight, second.weight, router.scale
        x, *inside, seen = text_ops.added_norms(
            x, mixed, before.weight, weights, factor=router.factor, epsilon=before.eps
        )
        branches = self.mlp(inside[0]), self.experts(inside[1], router.scores(seen), router.per_expert_scale)
        weights = self.post_feedforward_layernorm_1.weight, self.post_feedforward_layernorm_2.weight, behind.weight
        return text_ops.joined_norms(x, branches, weights, scalar, epsilon=behind.eps)

    def keys_and_values(self, x: Tensor, rope: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values alone: all that is wanted of the encoder's last layer."""
        return self.self_attn.keys_and_values(self.input_layernorm(x), rope, mask, *past)


class ScaledEmbedding(Module[[Tensor], Tensor]):
    """Rows of the embedding times √hidden_size, a factor that has the embedding's dtype; and the head tied to it."""

    def __init__(self, spec: DiffusionGemmaSpec) -> None:
        self.weight = Tensor.zeros([spec.vocab_size, spec.hidden_size])
        self.factor = spec.hidden_size**0.5

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 [rows, length] -> [rows, length, hidden_size]."""
        return self.scaled(F.gather(self.weight, ids, axis=0))

    def means(self, logits: Tensor, enabled: Tensor) -> Tensor:
        """What logits expect: the mean of all embeddings under their softmax.

        Args:
            logits: [rows, length, vocab_size].
            enabled: float32 [rows], what the means of a row are multiplied with: 0 or 1.

        Returns:
            [rows, length, hidden_size].
        """
        if uses_cpu_kernels(logits.dtype, logits.device):
            return text_ops.table_means(logits, enabled, self.weight, self.factor)
        chances = F.softmax(logits.cast(DType.float32)).cast(logits.dtype)
        times = F.unsqueeze(F.unsqueeze(enabled, -1), -1).cast(logits.dtype)
        return self.scaled(chances @ self.weight) * times

    def logits(self, x: Tensor, softcap: float, temperature: Tensor) -> Tensor:
        """Capped logits divided by the temperature.

        Args:
            x: [rows, length, hidden_size].
            softcap: What logits come near to.
            temperature: float32 [1].

        Returns:
            float32 [rows, length, vocab_size].
        """
        if uses_cpu_kernels(x.dtype, x.device):
            return text_ops.table_logits(x, self.weight, softcap, temperature)
        return F.tanh((x @ self.weight.T).cast(DType.float32) / softcap) * softcap / temperature

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
