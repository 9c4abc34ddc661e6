"""transformers' DiffusionGemma behind the engine's three steps, and its generation with the engine's random numbers.

Reference: transformers models/diffusion_gemma/generation_diffusion_gemma.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSampler
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion

from max_zimage.diffusion_gemma import sampler
from max_zimage.diffusion_gemma.steps import CanvasLook, Ids

TOP = 64


class TransformersSteps:
    """The three steps in PyTorch, float32, with prompts padded on their left."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        self.model = model.eval()
        config: Any = model.config
        self.vocab_size: int = config.text_config.vocab_size
        self.canvas_length: int = config.canvas_length
        self.max_length: int = config.text_config.max_position_embeddings

    @torch.no_grad()
    def encode(self, ids: Ids, lengths: Ids) -> tuple[Cache, Tensor]:
        tokens, mask = left_padded(ids, lengths, 0)
        cache = DynamicCache(config=self.model.config.text_config)
        return self._read(cache, tokens, mask), mask

    @torch.no_grad()
    def commit(self, cache: tuple[Cache, Tensor], ids: Ids) -> tuple[Cache, Tensor]:
        read, mask = cache
        mask = torch.nn.functional.pad(mask, (0, self.canvas_length), value=True)
        return self._read(copy.deepcopy(read), torch.from_numpy(ids), mask), mask

    @torch.no_grad()
    def denoise(
        self,
        canvas: Ids,
        sc_logits: Tensor | None,
        sc_enabled: np.ndarray[Any, np.dtype[np.bool_]],
        temperature: float,
        cache: tuple[Cache, Tensor],
    ) -> CanvasLook:
        read, mask = cache
        seen = torch.nn.functional.pad(mask, (0, self.canvas_length), value=True)
        out = self.model(
            decoder_input_ids=torch.from_numpy(canvas),
            past_key_values=read,
            self_conditioning_logits=sc_logits,
            self_conditioning_mask=None if sc_logits is None else torch.from_numpy(sc_enabled),
            decoder_attention_mask=seen,
        )
        z = out.logits / torch.tensor(temperature)  # float32, as transformers has it
        chances = torch.softmax(z, dim=-1)
        best = chances.topk(min(TOP, self.vocab_size), dim=-1)
        entropy = torch.distributions.Categorical(logits=z).entropy()
        return CanvasLook(
            z, z.argmax(dim=-1).numpy(), best.values.numpy(), best.indices.numpy(), entropy.numpy().astype(np.float32)
        )

    def _read(self, cache: Cache, tokens: Tensor, mask: Tensor) -> Cache:
        encoder, begin = self.model.model.encoder, cache.get_seq_length()
        positions = torch.arange(begin, begin + tokens.shape[1])[None]
        masks = encoder.create_masks_for_generate(
            config=self.model.config,
            inputs_embeds=torch.empty(*tokens.shape, 0),
            attention_mask=mask,
            past_key_values=cache,
            position_ids=positions,
        )
        encoder(input_ids=tokens, attention_mask=masks, past_key_values=cache, position_ids=positions)
        return cache


def left_padded(ids: Ids, lengths: Ids, pad: int) -> tuple[Tensor, Tensor]:
    """Prompts as transformers takes them, int64 [rows, longest], and which tokens are theirs, bool of that shape."""
    longest = int(lengths.max())
    tokens = np.full((len(ids), longest), pad, np.int64)
    for row, length in enumerate(lengths):
        tokens[row, longest - length :] = ids[row, :length]
    return torch.from_numpy(tokens), torch.from_numpy(np.arange(longest) >= longest - lengths[:, None])


@contextmanager
def drawn_as_the_engine_draws(seeds: Sequence[int], vocabulary: int, length: int) -> Iterator[None]:
    """Within this, `generate` of transformers takes the engine's numbers in place of PyTorch's.

    It draws a canvas, then for every step tokens and then another canvas, which is the noise.
    """
    block, step, has_drawn = -1, 0, False

    def tokens(probabilities: Tensor, num_samples: int) -> Tensor:
        nonlocal has_drawn
        assert num_samples == 1
        has_drawn = True
        best = probabilities.view(len(seeds), length, vocabulary).topk(min(TOP, vocabulary), dim=-1)
        units, _ = sampler.chances(seeds, block, step, length)
        found = sampler.drawn(best.values.numpy(), best.indices.numpy(), units)
        return torch.from_numpy(found).view(-1, 1)

    def canvas(self: EntropyBoundSampler, batch_size: int, device: torch.device) -> Tensor:
        nonlocal block, step, has_drawn
        assert batch_size == len(seeds)
        if not has_drawn:
            block, step = block + 1, 0
            return torch.from_numpy(sampler.first_noise(seeds, block, length, vocabulary))
        _, units = sampler.chances(seeds, block, step, length)
        step, has_drawn = step + 1, False
        return torch.from_numpy(sampler.tokens_of(units, vocabulary))

    with patch.object(torch, "multinomial", tokens), patch.object(EntropyBoundSampler, "initialize_canvas", canvas):
        yield
