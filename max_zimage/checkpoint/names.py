"""The one table of weight names: what the graphs call a parameter, and where each checkpoint format keeps it.

A row holds the engine's name and, for both namings, the tensors of the file that make it up, with their shapes. Several
tensors are stacked along axis 0 in the order given: that is how query, key and value, the two inputs of SwiGLU, and the
modulations of all blocks become one matrix each. A `{word}` in braces stands for the places of the model where the row
repeats; where the engine's name lacks it, the row stacks all its places.

RoPE rotates pairs of a query's and a key's numbers. The transformer's checkpoints keep the two of a pair side by side
(interleaved). A row's `rotary` names how many of its leading numbers along axis 0 are queries and keys: in each head of
those, the first numbers of all pairs come to stand before the second ones. A dot product does not see the order, and
the graphs rotate whole halves, in one pass with wide loads.

A CPU takes matrices and convolutions in another order yet: where a row has a `packing`, in panels of outputs side by
side, as `graphs.ops.packed_shape` says; "gated" halves have 16 outputs each in a panel, "taps" are packed one by one.

What a file may hold and the engine does not load is a `Dropped` entry, with the reason.

References: diffusers ZImageTransformer2DModel and AutoencoderKL, transformers Qwen3ForCausalLM; for the original
namings Tongyi-MAI/Z-Image (src/zimage/transformer.py), black-forest-labs/flux (src/flux/modules/autoencoder.py) and, of
the text encoder, ggml-org/llama.cpp (gguf-py/gguf/constants.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# same: as it stands in the file. conv: [out, in, height, width] becomes [height, width, in, out], what a convolution
# over channels-last pictures takes unless it is cuDNN's, which takes it as it stands. matrix: a convolution of one
# pixel, [out, in, 1, 1], becomes [out, in].
Layout = Literal["same", "conv", "matrix"]
Naming = Literal["diffusers", "original"]
Packing = Literal["panels", "gated", "taps"]
Shape = tuple[str | int, ...]
Sources = tuple[tuple[str, Shape], ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        engine: The graphs' name.
        diffusers: Name and shape of the tensors in the diffusers (or transformers) naming.
        original: The same in the naming of the original authors' single files.
        layout: How diffusers' tensors become the engine's.
        original_layout: How the original tensors do.
        rotary: Size, by name, of the leading part along axis 0 whose heads have their pairs brought apart.
        packing: How the matrix is packed where the graphs take it packed; None where they never do.
    """

    engine: str
    diffusers: Sources
    original: Sources
    layout: Layout = "same"
    original_layout: Layout = "same"
    rotary: str | None = None
    packing: Packing | None = None


@dataclass(frozen=True)
class Dropped:
    """A tensor that a file may hold and the engine does not load.

    Attributes:
        name: Without the file's prefix.
        reason: Why not.
        prefixed: Whether the file's prefix stands before it.
    """

    name: str
    reason: str
    prefixed: bool = True


def _row(
    engine: str,
    *shape: str | int,
    diffusers: str = "",
    original: str = "",
    layout: Layout = "same",
    rotary: str | None = None,
    packing: Packing | None = None,
) -> Row:
    """A parameter kept in one tensor of the same shape everywhere; an empty name means the engine's."""
    return Row(
        engine=engine,
        diffusers=((diffusers or engine, shape),),
        original=((original or engine, shape),),
        layout=layout,
        original_layout=layout,
        rotary=rotary,
        packing=packing,
    )


def _fused(
    engine: str,
    sources: Sources,
    original: Sources = (),
    rotary: str | None = None,
    packing: Packing | None = None,
) -> Row:
    return Row(engine=engine, diffusers=sources, original=original or sources, rotary=rotary, packing=packing)


def _conv(engine: str, out: str | int, into: str | int, original: str, kernel: int = 3) -> tuple[Row, Row]:
    return (
        _row(
            f"{engine}.weight", out, into, kernel, kernel, original=f"{original}.weight", layout="conv", packing="taps"
        ),
        _row(f"{engine}.bias", out, original=f"{original}.bias"),
    )


def _affine(engine: str, size: str, original: str) -> tuple[Row, Row]:
    return (
        _row(f"{engine}.weight", size, original=f"{original}.weight"),
        _row(f"{engine}.bias", size, original=f"{original}.bias"),
    )


def _pixelwise(engine: str, *names: tuple[str, str]) -> tuple[Row, Row]:
    """Linear layers as one, by diffusers' and the original names; the original file has convolutions of one pixel."""
    square, out = ("deepest", "deepest"), ("deepest",)
    return (
        Row(
            engine=f"{engine}.weight",
            diffusers=tuple((f"{diffusers}.weight", square) for diffusers, _ in names),
            original=tuple((f"{original}.weight", (*square, 1, 1)) for _, original in names),
            original_layout="matrix",
            packing="panels",
        ),
        Row(
            engine=f"{engine}.bias",
            diffusers=tuple((f"{diffusers}.bias", out) for diffusers, _ in names),
            original=tuple((f"{original}.bias", out) for _, original in names),
        ),
    )


TEXT_ENCODER: tuple[Row, ...] = (
    _row("embed_tokens.weight", "vocabulary", "hidden", original="token_embd.weight"),
    _row("{layer}.input_layernorm.weight", "hidden", original="{layer}.attn_norm.weight"),
    _fused(
        "{layer}.self_attn.qkv_proj.weight",
        (
            ("{layer}.self_attn.q_proj.weight", ("query", "hidden")),
            ("{layer}.self_attn.k_proj.weight", ("key", "hidden")),
            ("{layer}.self_attn.v_proj.weight", ("key", "hidden")),
        ),
        original=(
            ("{layer}.attn_q.weight", ("query", "hidden")),
            ("{layer}.attn_k.weight", ("key", "hidden")),
            ("{layer}.attn_v.weight", ("key", "hidden")),
        ),
        packing="panels",
    ),
    _row("{layer}.self_attn.q_norm.weight", "head", original="{layer}.attn_q_norm.weight"),
    _row("{layer}.self_attn.k_norm.weight", "head", original="{layer}.attn_k_norm.weight"),
    _row(
        "{layer}.self_attn.o_proj.weight",
        *("hidden", "query"),
        original="{layer}.attn_output.weight",
        packing="panels",
    ),
    _row("{layer}.post_attention_layernorm.weight", "hidden", original="{layer}.ffn_norm.weight"),
    _fused(
        "{layer}.mlp.gate_up_proj.weight",
        (
            ("{layer}.mlp.gate_proj.weight", ("intermediate", "hidden")),
            ("{layer}.mlp.up_proj.weight", ("intermediate", "hidden")),
        ),
        original=(
            ("{layer}.ffn_gate.weight", ("intermediate", "hidden")),
            ("{layer}.ffn_up.weight", ("intermediate", "hidden")),
        ),
        packing="gated",
    ),
    _row(
        "{layer}.mlp.down_proj.weight",
        *("hidden", "intermediate"),
        original="{layer}.ffn_down.weight",
        packing="panels",
    ),
)
TEXT_ENCODER_NORM = _row("norm.weight", "hidden", original="output_norm.weight")
"""Needed by the last hidden state alone."""
_NORM_UNUSED = "the features are a hidden state from before the final norm"
_HEAD_UNUSED = "features are taken, no words are predicted"
TEXT_ENCODER_DROPPED = (
    Dropped("norm.weight", _NORM_UNUSED),
    Dropped("output_norm.weight", _NORM_UNUSED),
    Dropped("lm_head.weight", _HEAD_UNUSED, prefixed=False),
    Dropped("output.weight", _HEAD_UNUSED),
    Dropped("text_encoders.qwen3_4b.transformer.lm_head.weight", _HEAD_UNUSED, prefixed=False),
    Dropped("text_encoders.qwen3_4b.logit_scale", "a number of other text encoders", prefixed=False),
)

TRANSFORMER: tuple[Row, ...] = (
    _row("x_embedder.weight", "dim", "patch", diffusers="all_x_embedder.2-1.weight", packing="panels"),
    _row("x_embedder.bias", "dim", diffusers="all_x_embedder.2-1.bias"),
    _row("x_pad_token", 1, "dim"),
    _row("cap_pad_token", 1, "dim"),
    _row("cap_embedder.norm.weight", "caption", diffusers="cap_embedder.0.weight", original="cap_embedder.0.weight"),
    _row(
        "cap_embedder.linear.weight",
        "dim",
        "caption",
        diffusers="cap_embedder.1.weight",
        original="cap_embedder.1.weight",
        packing="panels",
    ),
    _row("cap_embedder.linear.bias", "dim", diffusers="cap_embedder.1.bias", original="cap_embedder.1.bias"),
    _row(
        "t_embedder.linear_1.weight",
        *(1024, 256),  # the sinusoid has 256 numbers whatever the model's width
        diffusers="t_embedder.mlp.0.weight",
        original="t_embedder.mlp.0.weight",
        packing="panels",
    ),
    _row("t_embedder.linear_1.bias", 1024, diffusers="t_embedder.mlp.0.bias", original="t_embedder.mlp.0.bias"),
    _row(
        "t_embedder.linear_2.weight",
        "adaln",
        1024,
        diffusers="t_embedder.mlp.2.weight",
        original="t_embedder.mlp.2.weight",
        packing="panels",
    ),
    _row("t_embedder.linear_2.bias", "adaln", diffusers="t_embedder.mlp.2.bias", original="t_embedder.mlp.2.bias"),
    _fused(
        "modulation.weight",
        (("{modulated}.adaLN_modulation.0.weight", ("4 dim", "adaln")),),
        packing="panels",
    ),
    _fused("modulation.bias", (("{modulated}.adaLN_modulation.0.bias", ("4 dim",)),)),
    _fused(
        "{block}.attention.qkv.weight",
        (
            ("{block}.attention.to_q.weight", ("dim", "dim")),
            ("{block}.attention.to_k.weight", ("dim", "dim")),
            ("{block}.attention.to_v.weight", ("dim", "dim")),
        ),
        original=(("{block}.attention.qkv.weight", ("3 dim", "dim")),),
        rotary="2 dim",
        packing="panels",
    ),
    _row(
        "{block}.attention.out.weight",
        *("dim", "dim"),
        diffusers="{block}.attention.to_out.0.weight",
        packing="panels",
    ),
    _row("{block}.attention.q_norm.weight", "head", diffusers="{block}.attention.norm_q.weight", rotary="head"),
    _row("{block}.attention.k_norm.weight", "head", diffusers="{block}.attention.norm_k.weight", rotary="head"),
    _fused(
        "{block}.feed_forward.w13.weight",
        (
            ("{block}.feed_forward.w1.weight", ("ffn", "dim")),
            ("{block}.feed_forward.w3.weight", ("ffn", "dim")),
        ),
        packing="gated",
    ),
    _row("{block}.feed_forward.w2.weight", "dim", "ffn", packing="panels"),
    _row("{block}.attention_norm1.weight", "dim"),
    _row("{block}.attention_norm2.weight", "dim"),
    _row("{block}.ffn_norm1.weight", "dim"),
    _row("{block}.ffn_norm2.weight", "dim"),
    _row(
        "final_modulation.weight",
        *("dim", "adaln"),
        diffusers="all_final_layer.2-1.adaLN_modulation.1.weight",
        original="final_layer.adaLN_modulation.1.weight",
        packing="panels",
    ),
    _row(
        "final_modulation.bias",
        "dim",
        diffusers="all_final_layer.2-1.adaLN_modulation.1.bias",
        original="final_layer.adaLN_modulation.1.bias",
    ),
    _row(
        "final_layer.linear.weight",
        *("patch", "dim"),
        diffusers="all_final_layer.2-1.linear.weight",
        packing="panels",
    ),
    _row("final_layer.linear.bias", "patch", diffusers="all_final_layer.2-1.linear.bias"),
)
TRANSFORMER_DROPPED = (
    Dropped("norm_final.weight", "the final layer's norm has no weight; the model never reads this one"),
)

VAE: tuple[Row, ...] = (
    *_conv("encoder.conv_in", "shallowest", 3, "encoder.conv_in"),
    *_affine("encoder.conv_norm_out", "deepest", "encoder.norm_out"),
    *_conv("encoder.conv_out", "2 latent", "deepest", "encoder.conv_out"),
    *_conv("decoder.conv_in", "deepest", "latent", "decoder.conv_in"),
    *_affine("decoder.conv_norm_out", "shallowest", "decoder.norm_out"),
    *_conv("decoder.conv_out", 3, "shallowest", "decoder.conv_out"),
    *_affine("{resnet}.norm1", "in", "{resnet}.norm1"),
    *_conv("{resnet}.conv1", "out", "in", "{resnet}.conv1"),
    *_affine("{resnet}.norm2", "out", "{resnet}.norm2"),
    *_conv("{resnet}.conv2", "out", "out", "{resnet}.conv2"),
    *_conv("{widening}.conv_shortcut", "out", "in", "{widening}.nin_shortcut", kernel=1),
    *_conv("{resampler}.conv", "out", "out", "{resampler}.conv"),
    *_affine("{attention}.group_norm", "deepest", "{attention}.norm"),
    *_pixelwise(
        "{attention}.qkv",
        ("{attention}.to_q", "{attention}.q"),
        ("{attention}.to_k", "{attention}.k"),
        ("{attention}.to_v", "{attention}.v"),
    ),
    *_pixelwise("{attention}.to_out", ("{attention}.to_out.0", "{attention}.proj_out")),
)
