"""Text encoder and transformer, trained together by flow matching on latents and captions.

The modules are those of diffusers and transformers; only two things about them are done otherwise in training, which
change nothing but rounding: RoPE in real arithmetic and attention as plain products, both of which torch.compile, used
on a CPU, joins with what stands around them. Captions fill one multiple of 32 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

DIM = 256
TEXT_DIM = 128
CAPTION_TOKENS = 32
GATE = 0.5
"""What a residual branch begins with before tanh: adaLN's gates of 0 would let nothing through."""

Table = tuple[Tensor, Tensor]
"""Cosines and sines, float32 [tokens, head_dim / 2]."""


def new_text_encoder(vocabulary: int) -> Qwen3ForCausalLM:
    """With random weights that are always the same."""
    torch.manual_seed(2)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=TEXT_DIM,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            rms_norm_eps=1e-6,
        )
    )


def new_transformer() -> ZImageTransformer2DModel:
    """With random weights that are always the same, gates half open and an output of zero."""
    torch.manual_seed(3)
    transformer = ZImageTransformer2DModel(
        dim=DIM,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_DIM,
        axes_dims=[32, 48, 48],
        axes_lens=[1536, 512, 512],
    )
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        nn.init.normal_(pad, std=0.02)
    for block in [*transformer.noise_refiner, *transformer.layers]:
        modulation = block.adaLN_modulation[0]
        nn.init.normal_(modulation.weight, std=0.01)
        with torch.no_grad():
            modulation.bias.copy_(torch.tensor([0.0, GATE, 0.0, GATE]).repeat_interleave(DIM))
    last = transformer.all_final_layer["2-1"].linear
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return transformer


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Tokenized captions, each int64 [count, CAPTION_TOKENS]."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Captions:
        """Tokenize as the pipeline does.

        Raises:
            ValueError: If a caption has more tokens than the model is trained with.
        """
        messages = [[{"role": "user", "content": text}] for text in texts]
        chats = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        made = tokenizer(chats, padding="max_length", max_length=CAPTION_TOKENS)
        longest = max(map(sum, made.attention_mask))
        if longest > CAPTION_TOKENS:
            raise ValueError(
                f"captions must have at most {CAPTION_TOKENS} tokens, got {longest}; "
                "shorten them or train with a larger vocabulary"
            )
        return cls(ids=torch.tensor(made.input_ids), mask=torch.tensor(made.attention_mask))


class Model(nn.Module):
    """Captions and noisy latents to velocities; what is trained.

    Attributes:
        text_encoder: Its hidden state -2 is what the transformer reads.
        transformer: Learns to predict clean latents minus noise.
    """

    def __init__(self, text_encoder: Qwen3ForCausalLM, transformer: ZImageTransformer2DModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer
        for block in self.blocks():
            block.attention.set_processor(RealRopeAttention())

    def blocks(self) -> list[ZImageTransformerBlock]:
        """The refiners' and the main layers."""
        model = self.transformer
        return [*model.noise_refiner, *model.context_refiner, *model.layers]

    def forward(self, patches: Tensor, times: Tensor, ids: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predict.

        Args:
            patches: float32 [batch, rows * columns, 64], see `patchify`.
            times: float32 [batch], 0 for noise and 1 for clean.
            ids: int64 [batch, CAPTION_TOKENS].
            mask: Of the same shape, 1 where there is a token.
            grid: Rows and columns of patches.

        Returns:
            As `patches`.
        """
        model = self.transformer
        tokens = patches.shape[1]
        config = model.config
        image_table, caption_table = tables(grid, tuple(config.axes_dims), config.rope_theta, patches.device)
        features = self.text_encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        condition = model.t_embedder(times * model.t_scale)
        image = model.all_x_embedder["2-1"](patches)
        pads = model.x_pad_token.to(image.dtype).expand(len(image), -tokens % 32, DIM)
        image = torch.cat([image, pads], dim=1)
        for block in model.noise_refiner:
            image = block(image, None, image_table, condition)
        caption = model.cap_embedder(features.hidden_states[-2])
        caption = torch.where(mask[..., None] == 1, caption, model.cap_pad_token.to(caption.dtype))
        for block in model.context_refiner:
            caption = block(caption, None, caption_table)
        both = torch.cat([image, caption], dim=1)
        table = tuple(torch.cat(pair) for pair in zip(image_table, caption_table, strict=True))
        for block in model.layers:
            both = block(both, None, table, condition)
        return model.all_final_layer["2-1"](both, condition)[:, :tokens]


class RealRopeAttention:
    """Z-Image's attention in operations that a compiler can join: no complex numbers, no call of a kernel."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Table | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            attn: Whose weights are used.
            hidden_states: [batch, tokens, DIM].
            encoder_hidden_states: None, as in all of Z-Image.
            attention_mask: None: no item of a training batch is shorter than another.
            freqs_cis: Cosines and sines of the tokens.
        """
        if encoder_hidden_states is not None or attention_mask is not None or freqs_cis is None:
            raise ValueError("training has neither masks nor other hidden states, and always RoPE")
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (_rotated(norm(x), freqs_cis) for norm, x in ((attn.norm_q, query), (attn.norm_k, key)))
        query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
        scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1])
        out = scores.softmax(-1).to(value.dtype) @ value
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def _rotated(x: Tensor, table: Table) -> Tensor:
    """Neighbours of the last axis turned by each token's angles; x is [batch, tokens, heads, head_dim]."""
    cos, sin = (values[:, None] for values in table)
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


@cache
def tables(
    grid: tuple[int, int], axes_dims: tuple[int, ...], theta: float, device: torch.device
) -> tuple[Table, Table]:
    """RoPE of image tokens and of caption tokens, for a grid of patches; kept, for recorded steps read them."""
    image, caption = (_table(places, axes_dims, theta, device) for places in position_ids(*grid))
    return image, caption


def _table(places: Tensor, axes_dims: tuple[int, ...], theta: float, device: torch.device) -> Table:
    angles = []
    for axis, dim in enumerate(axes_dims):
        frequencies = theta ** -(torch.arange(0, dim, 2).double() / dim)
        angles.append(places[:, axis, None].double() * frequencies)
    joined = torch.cat(angles, dim=1)
    return joined.cos().float().to(device), joined.sin().float().to(device)


def position_ids(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Frame, row and column of image tokens, padded to a multiple of 32, and of caption tokens."""
    frame = torch.tensor([CAPTION_TOKENS + 1])
    image = torch.cartesian_prod(frame, torch.arange(rows), torch.arange(columns))
    image = F.pad(image, (0, 0, 0, -len(image) % 32))
    caption = F.pad(torch.arange(1, CAPTION_TOKENS + 1)[:, None], (0, 2))
    return image, caption


def patchify(latents: Tensor) -> Tensor:
    """[batch, channels, height, width] as [batch, height / 2 * width / 2, 4 * channels], channels fastest."""
    batch, channels, height, width = latents.shape
    cut = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(batch, height // 2 * (width // 2), 4 * channels)


def unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`, of rows and columns of patches."""
    cut = patches.view(len(patches), *grid, 2, 2, -1).permute(0, 5, 1, 3, 2, 4)
    return cut.reshape(len(patches), -1, 2 * grid[0], 2 * grid[1])
