"""Random tiny checkpoints, written by diffusers and transformers themselves, and rewritten into the original namings.

Nothing in them is zero, one or symmetric by chance: pad tokens and biases are random, norm weights vary around one, and
matrices are scaled by their fan-in so that activations stay near one through every layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from max_zimage.embedded import PATH as EMBEDDED

_AXES = {64: (16, 24, 24), 128: (32, 48, 48)}  # head dim -> caption, height, width, in the real model's proportions

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TinySpec:
    """What varies between tiny checkpoints.

    Attributes:
        head_dim: Of the transformer, 64 or 128.
        refiner_layers: Noise refiners, and as many context refiners.
        dtype: Of all weights.
        seed: Of all weights.
        shift: Of the scheduler.
        shard_size: Largest file of a component, e.g. "400KB"; None for one file.
        embedded_parts: Whether text encoder and autoencoder have the embedded model's shapes, for tests that run
            the model: those graphs are compiled anyway.
    """

    head_dim: int = 64
    refiner_layers: int = 1
    dtype: torch.dtype = torch.float32
    seed: int = 0
    shift: float = 3.0
    shard_size: str | None = None
    embedded_parts: bool = False


def write_tiny(directory: Path, spec: TinySpec) -> ZImagePipeline:
    """Write a checkpoint in the diffusers layout.

    Returns:
        The pipeline that was written, for its numbers.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(EMBEDDED / "tokenizer")
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=spec.shift),
        vae=_embedded_vae() if spec.embedded_parts else _vae(),
        text_encoder=_embedded_text_encoder() if spec.embedded_parts else _text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=_transformer(spec, caption_dim=128 if spec.embedded_parts else 64),
    )
    generator = torch.Generator().manual_seed(spec.seed)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        _randomize(module, generator)
        module.to(spec.dtype).eval()
    pipeline.save_pretrained(directory, max_shard_size=spec.shard_size)
    return pipeline


def _transformer(spec: TinySpec, caption_dim: int) -> ZImageTransformer2DModel:
    return ZImageTransformer2DModel(
        dim=2 * spec.head_dim,
        n_layers=2,
        n_refiner_layers=spec.refiner_layers,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=caption_dim,
        axes_dims=_AXES[spec.head_dim],
        axes_lens=(1536, 512, 512),
    )


def _text_encoder(vocabulary: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=96,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
        )
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 24, 24),  # two widths grow, the last stays: with and without a shortcut
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _embedded_text_encoder() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config.from_pretrained(EMBEDDED / "text_encoder"))


def _embedded_vae() -> AutoencoderKL:
    return AutoencoderKL.from_config(AutoencoderKL.load_config(EMBEDDED / "vae"))


@torch.no_grad()
def _randomize(module: torch.nn.Module, generator: torch.Generator) -> None:
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("pad_token", "embed_tokens.weight")):
            parameter.copy_(noise)
        elif parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        elif name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        else:
            parameter.copy_(0.2 * noise)


def original_transformer(state: StateDict) -> StateDict:
    """A transformer's weights as in the original single file: fused qkv, and a norm that the model never reads."""
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("to_q.weight"):
            rows = [state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            renamed[name.replace("to_q", "qkv")] = torch.cat(rows)
        elif not re.search(r"to_[kv]\.weight$", name):
            name = re.sub(r"^all_(x_embedder|final_layer)\.2-1\.", r"\1.", name)
            name = re.sub(r"\.norm_([qk])\.weight$", r".\1_norm.weight", name)
            renamed[name.replace(".to_out.0.", ".out.")] = tensor
    width = next(iter(renamed.values())).shape[0]
    renamed["norm_final.weight"] = torch.ones(width, dtype=next(iter(renamed.values())).dtype)
    return renamed


def original_vae(state: StateDict, blocks: int = 4) -> StateDict:
    """An autoencoder's weights as in the original single file: other names, attention as convolutions of one pixel."""
    renamed = {}
    for name, tensor in state.items():
        half, rest = name.split(".", 1)
        rest = re.sub(r"^down_blocks\.(\d)\.resnets\.", r"down.\1.block.", rest)
        rest = re.sub(r"^down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", rest)
        rest = re.sub(r"^up_blocks\.(\d)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", rest)
        rest = re.sub(r"^up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.", rest)
        rest = re.sub(r"^mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", rest)
        rest = rest.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if rest.startswith("mid_block.attentions.0."):
            rest = "mid.attn_1." + rest.removeprefix("mid_block.attentions.0.").replace("to_out.0", "proj_out")
            rest = rest.replace("group_norm", "norm").replace(".to_", ".")
            tensor = tensor[:, :, None, None].contiguous() if tensor.ndim == 2 else tensor
        renamed[f"{half}.{rest}"] = tensor
    return renamed


def save_single(file: Path, state: StateDict, prefix: str = "") -> Path:
    """Write weights into one file, every name behind a prefix."""
    save_file({prefix + name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file
