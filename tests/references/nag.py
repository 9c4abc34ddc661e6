"""Normalized attention guidance in torch, inside the reference's transformer: a processor of its main layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention

from tests.references.diffusers_runs import FloatArray, Pair, reference_prediction


@dataclass(frozen=True)
class Nag:
    """How far it goes; see `max_zimage.graphs.model.normalized_attention`."""

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25


def guided(positive: torch.Tensor, negative: torch.Tensor, nag: Nag) -> torch.Tensor:
    """The z of z+ and z-, [..., tokens, dim], in the dtype that they are in."""
    further = nag.scale * positive - (nag.scale - 1) * negative
    ratio = further.abs().sum(dim=-1, keepdim=True) / (positive.abs().sum(dim=-1, keepdim=True) + 1e-6)
    further = further * torch.where(ratio > nag.tau, nag.tau / ratio, torch.ones_like(ratio))
    return nag.alpha * further + (1 - nag.alpha) * positive


class NagProcessor:
    """Attention over two items, the caption and the negative one; both go on with the guided image tokens.

    Args:
        nag: How far.
        image_tokens: Of each item, with their pad tokens; they stand first.
    """

    def __init__(self, nag: Nag, image_tokens: int) -> None:
        self.nag, self.image_tokens = nag, image_tokens

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        freqs_cis: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[2, tokens, dim] -> the same."""
        assert len(hidden_states) == 2
        assert freqs_cis is not None
        query, key, value = (
            to(hidden_states).unflatten(-1, (attn.heads, -1)) for to in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (turned(norm(each), freqs_cis) for norm, each in ((attn.norm_q, query), (attn.norm_k, key)))
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        image = mixed[:, : self.image_tokens].float()
        mixed[:, : self.image_tokens] = guided(image[0], image[1], self.nag).to(mixed.dtype)
        return attn.to_out[0](mixed)


def turned(x: torch.Tensor, freqs_cis: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of adjacent pairs, [items, tokens, heads, head_dim]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * freqs_cis.unsqueeze(2)).flatten(3).type_as(x)


@contextmanager
def nag_inside(pair: Pair, nag: Nag, image_tokens: int) -> Iterator[None]:
    """Guide the reference's main layers for a while.

    The image comes to both items from the first one's noise refiner. The second one's makes almost the same of it: its
    pad tokens stand at position 0, and the image's positions begin behind the caption's.
    """

    def one_image(layer: torch.nn.Module, given: tuple[Any, ...]) -> None:
        tokens = given[0]
        tokens[1, :image_tokens] = tokens[0, :image_tokens]

    layers: Any = pair.theirs.transformer.layers
    before = [layer.attention.processor for layer in layers]
    hook = layers[0].register_forward_pre_hook(one_image)
    try:
        for layer in layers:
            layer.attention.set_processor(NagProcessor(nag, image_tokens))
        yield
    finally:
        hook.remove()
        for layer, processor in zip(layers, before, strict=True):
            layer.attention.set_processor(processor)


def nag_prediction(
    pair: Pair,
    latents: FloatArray,
    timestep: float,
    positive: list[torch.Tensor],
    negative: list[torch.Tensor],
    nag: Nag,
) -> FloatArray:
    """The transformer's output for each picture, float32 [pictures, channels, height/8, width/8], one after the other.

    Args:
        pair: Whose reference runs.
        latents: float32 [pictures, channels, height/8, width/8].
        timestep: 1 - sigma.
        positive: [tokens, caption_dim] a picture.
        negative: The same of its negative caption.
        nag: How far.
    """
    tokens = latents.shape[2] * latents.shape[3] // 4
    made = []
    with nag_inside(pair, nag, -(-tokens // 32) * 32):
        for picture, captions in zip(latents, zip(positive, negative, strict=True), strict=True):
            both = reference_prediction(pair, np.stack([picture, picture]), timestep, list(captions))
            # Both items go on with the same image tokens, so that either has the velocity.
            np.testing.assert_allclose(both[0], both[1], atol=1e-4 * np.abs(both).max())
            made.append(both[0])
    return np.stack(made)
