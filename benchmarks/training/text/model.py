"""The tiny DiffusionGemma as transformers has it, with what its training needs.

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import (
    DiffusionGemmaConfig,
    DiffusionGemmaTextConfig,
)
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

CANVAS = 16
"""Tokens of a canvas: the longest caption has 14, and one more ends it."""
WINDOW = 16
"""Of the sliding layers: shorter than a prompt with its canvas, so that training exercises it."""
_SEED = 41


def config_of(vocabulary: int, pad: int, eos: int) -> DiffusionGemmaConfig:
    """The shape of the model: the default pattern of layers, as small as the task allows.

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
        num_hidden_layers=6,
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
    model.set_experts_implementation("eager")  # of what transformers has the fastest on a CPU
    encoder = model.model.encoder
    for part in (encoder.vision_tower, encoder.embed_vision):
        part.requires_grad_(False)
    return model.train()


class Denoiser(nn.Module):
    """Encoder and decoder over prompts and canvases of one step of training.

    A sequence is a prompt, padded on its left to one length, and behind it the caption that is to be written, which the
    encoder learns to continue while the decoder, which sees the prompt alone, learns to write it at once.
    """

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        super().__init__()
        self.model = model

    def encode(self, tokens: Tensor, prompts: Tensor, width: int) -> tuple[Tensor, DynamicCache]:
        """Logits of the next token at the end of the prompt and behind it, and keys and values of all.

        Args:
            tokens: int64 [batch, sequence].
            prompts: int64 [batch], tokens of each prompt.
            width: What prompts are padded to.

        Returns:
            float32 [batch, sequence - width + 1, vocabulary]; the cache, of every layer's whole sequence.
        """
        place = torch.arange(tokens.shape[1])
        real = place >= (width - prompts)[:, None]
        causal = real[:, None, None, :] & (place[:, None] >= place[None, :])
        # A row of padding sees itself, since a softmax over nothing is no number.
        causal = causal | torch.eye(len(place), dtype=torch.bool)
        masks = {
            "full_attention": causal,
            "sliding_attention": causal & (place[:, None] - place[None, :] < WINDOW),
        }
        cache = DynamicCache()  # without a config: a sliding layer's would forget the prompt behind the caption
        positions = (place[None] - (width - prompts)[:, None]).clamp(min=0)
        encoder = self.model.model.encoder.language_model
        out = encoder(input_ids=tokens, attention_mask=masks, position_ids=positions, past_key_values=cache)
        return self._logits(out.last_hidden_state[:, width - 1 :]), cache

    def denoise(
        self,
        canvas: Tensor,
        cache: DynamicCache,
        prompts: Tensor,
        width: int,
        known: Tensor | None,
        told: Tensor | None,
    ) -> Tensor:
        """Logits of clean tokens, float32 [batch, canvas, vocabulary].

        Args:
            canvas: int64 [batch, canvas].
            cache: Of `encode`, of which the first `width` places are read.
            prompts: int64 [batch].
            width: What prompts are padded to.
            known: Logits of a pass before, of the same shape as the result, or None.
            told: Which rows take them, bool [batch].
        """
        place = torch.arange(cache.get_seq_length())
        prompt = (place >= (width - prompts)[:, None]) & (place < width)
        near = prompt & (place >= width - WINDOW + 1)
        masks = {
            name: F.pad(seen, (0, canvas.shape[1]), value=True)[:, None, None, :].expand(-1, 1, canvas.shape[1], -1)
            for name, seen in (("full_attention", prompt), ("sliding_attention", near))
        }
        out = self.model.model.decoder(
            decoder_input_ids=canvas,
            past_key_values=cache,
            self_conditioning_logits=known,
            self_conditioning_mask=told,
            decoder_attention_mask=masks,
            decoder_position_ids=prompts[:, None] + torch.arange(canvas.shape[1]),
        )
        return self._logits(out.last_hidden_state)

    def _logits(self, hidden: Tensor) -> Tensor:
        cap = self.model.final_logit_softcapping
        return cap * torch.tanh(self.model.lm_head(hidden).float() / cap)
