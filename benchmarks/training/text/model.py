"""The tiny DiffusionGemma as transformers has it, with what its training needs.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import (
    DiffusionGemmaConfig,
    DiffusionGemmaTextConfig,
)
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

from benchmarks.training.text.stack import Sight, Stack, gate, products, root_mean_square

CANVAS = 16
"""Tokens of a canvas: the longest caption has 14, and one more ends it."""
WINDOW = 24
"""Of the sliding layers: shorter than the longest prompt with its canvas, so that training exercises it; all layers of
the decoder see a whole prompt, a ground that is named first among its words."""
LAYERS = ("sliding_attention", "sliding_attention", "full_attention") * 2
_SEED = 41


def config_of(vocabulary: int, pad: int, eos: int) -> DiffusionGemmaConfig:
    """The shape of the model: as small as the task allows.

    Args:
        vocabulary: Entries of the tokenizer; a random canvas uses all of them.
        pad: Token that fills what follows an end.
        eos: Token that ends a caption.
    """
    text = DiffusionGemmaTextConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=len(LAYERS),
        layer_types=list(LAYERS),
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=32,
        global_head_dim=64,
        num_experts=8,
        top_k_experts=2,
        sliding_window=WINDOW,
        max_position_embeddings=1024,
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=None,
        tie_word_embeddings=True,
        dtype="float32",
    )
    # transformers does not build the class without a vision tower; this one has five thousand parameters.
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        patch_size=4,
        position_embedding_size=16,
        pooling_kernel_size=1,
    )
    return DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=CANVAS)


def new_model(config: DiffusionGemmaConfig) -> DiffusionGemmaForBlockDiffusion:
    """A model of random weights, always the same; the vision tower wants no gradients."""
    torch.manual_seed(_SEED)
    model = DiffusionGemmaForBlockDiffusion(config)
    encoder = model.model.encoder
    for part in (encoder.vision_tower, encoder.embed_vision):
        part.requires_grad_(False)
    return model.train()


class Denoiser(nn.Module):
    """Encoder and decoder over prompts, captions and canvases of one step of training.

    A sequence is a prompt, padded on its left to one length, behind it the caption that is to be written, which the
    encoder learns to continue, and canvases, which see the prompt and themselves and learn to become the caption at
    once.
    """

    def __init__(
        self,
        model: DiffusionGemmaForBlockDiffusion,
        dtype: torch.dtype | None = None,
        *,
        is_compiled: bool = False,
    ) -> None:
        """Take a model over.

        Args:
            model: Whose parameters are trained.
            dtype: Of matrix products; that of `products` if not given.
            is_compiled: See `Stack`.
        """
        super().__init__()
        self.model = model
        self._dtype = dtype or products()
        self._stack = Stack(self._dtype, is_compiled=is_compiled)

    def forward(
        self, prompts: Tensor, lengths: Tensor, caption: Tensor | None, canvases: Sequence[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, ...]:
        """Logits, float32 [batch, places, vocabulary], of the caption's next tokens and of every canvas's clean ones.

        Args:
            prompts: int64 [batch, width], padded on the left.
            lengths: int64 [batch], tokens of each prompt.
            caption: int64 [batch, canvas]; its last token, which nothing follows, is not read. None: no logits of it.
            canvases: Each int64 [batch, canvas], with the logits of a pass before if there was one.
        """
        width, size = prompts.shape[1], CANVAS
        text = prompts if caption is None else torch.cat([prompts, caption[:, :-1]], dim=1)
        parts = [self.model.model.decoder.embed_tokens(text), *(self._noisy(*canvas) for canvas in canvases)]
        sights = self._sights(lengths, width, text.shape[1], len(canvases))
        hidden = self._stack.through(self.model.model.decoder.layers, torch.cat(parts, dim=1), sights)
        read = hidden[:, width - 1 if caption is not None else width :]
        return self._logits(read).split(size, dim=1)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits of places, softcapped, float32, of what is behind the last layer."""
        cap, decoder = self.model.final_logit_softcapping, self.model.model.decoder
        states = root_mean_square(hidden, decoder.norm.weight).to(self._dtype)
        return cap * torch.tanh(F.linear(states, self.model.lm_head.weight.to(self._dtype)).float() / cap)

    def _noisy(self, canvas: Tensor, known: Tensor | None) -> Tensor:
        """A canvas as the decoder takes it, float32 [batch, canvas, hidden]."""
        decoder = self.model.model.decoder
        x = decoder.embed_tokens(canvas)
        if known is None:
            return root_mean_square(x)
        table = decoder.embed_tokens
        soft = (known.softmax(dim=-1).to(self._dtype) @ table.weight.to(self._dtype)).float() * table.embed_scale
        part = decoder.self_conditioning
        normed = root_mean_square(soft, part.pre_norm.weight).to(self._dtype)
        gate_up = torch.cat([part.gate_proj.weight, part.up_proj.weight]).to(self._dtype)
        hidden = gate(F.linear(normed, gate_up))
        return root_mean_square(x + F.linear(hidden, part.down_proj.weight.to(self._dtype)).float())

    def _sights(self, lengths: Tensor, width: int, text: int, canvases: int) -> dict[str, Sight]:
        """Positions and masks: the text's tokens see what is before them, a canvas's the prompt and their canvas.

        Args:
            lengths: int64 [batch], tokens of each prompt.
            width: What prompts are padded to.
            text: Tokens of prompt and caption.
            canvases: How many follow.
        """
        place = torch.arange(text)
        canvas = torch.arange(canvases).repeat_interleave(CANVAS)
        real = (place >= (width - lengths)[:, None])[:, None, :]
        causal = real & (place[:, None] >= place[None, :])
        # A row of padding sees itself, since a softmax over nothing is no number.
        causal = causal | torch.eye(text, dtype=torch.bool)
        prompt = (real & (place < width)).expand(-1, len(canvas), -1)
        own = (canvas[:, None] == canvas[None, :]).expand(len(lengths), -1, -1)
        positions = (place - (width - lengths)[:, None]).clamp(min=0)
        written = lengths[:, None] + torch.arange(CANVAS).repeat(canvases)
        positions = torch.cat([positions, written], dim=1)
        sights = {}
        for kind, near, reach in (
            ("full_attention", causal, prompt),
            ("sliding_attention", causal & (place[:, None] - place < WINDOW), prompt & (place >= width - WINDOW + 1)),
        ):
            above = F.pad(near, (0, len(canvas)), value=False)
            seen = torch.cat([above, torch.cat([reach, own], dim=2)], dim=1)
            mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]
            cos, sin = self.model.model.decoder.rotary_emb(mask, positions, kind)
            sights[kind] = Sight(cos=cos[:, :, None], sin=sin[:, :, None], mask=mask)
        return sights
