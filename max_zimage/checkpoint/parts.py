"""Which component of a pipeline a tensor belongs to, told by its name: files may hold several of them, or one.

References: ComfyUI's prefixes of all-in-one checkpoints; llama.cpp's names of a language model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from max_zimage.checkpoint.tensors import Source

_PREFIXES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("transformer", re.compile(r"(model\.)?diffusion_model\.|transformer\.")),
    ("text_encoder", re.compile(r"text_encoders\.")),
    ("vae", re.compile(r"(first_stage_model|vae)\.")),
)
"""What all-in-one files put before the names of a part."""

_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "text_encoder",
        re.compile(
            r"(model\.)?(embed_tokens\.|norm\.weight$|layers\.\d+\.(self_attn|mlp|input_layernorm|post_attention_layernorm)\.)"
            r"|lm_head\.|token_embd\.|blk\.\d+\.|output(_norm)?\.weight$"
        ),
    ),
    (
        "vae",
        re.compile(r"(encoder|decoder)\.(conv_in|conv_out|norm_out|conv_norm_out|mid|mid_block|(down|up)(_blocks)?)\."),
    ),
    (
        "transformer",
        re.compile(
            r"(noise_refiner|context_refiner|cap_embedder|t_embedder|(all_)?x_embedder|(all_)?final_layer|norm_final)\."
            r"|layers\.\d+\.(attention|attention_norm\d|feed_forward|ffn_norm\d|adaLN_modulation)\.|(x|cap)_pad_token$"
        ),
    ),
)
"""What the names themselves say."""

_LANDMARKS = {
    "text_encoder": ("embed_tokens.weight", "token_embd.weight"),
    "transformer": ("cap_embedder.1.weight",),
    "vae": ("decoder.conv_in.weight",),
}
"""Tensors without which a file does not hold a part, whatever other names it has."""


def owner(name: str) -> str | None:
    """The component whose tensor this is by its name; None if it could be anybody's."""
    for patterns in (_PREFIXES, _NAMES):
        for component, pattern in patterns:
            if pattern.match(name):
                return component
    return None


def parts_in(names: Iterable[str]) -> set[str]:
    """The components that have tensors among these."""
    return {component for name in names if (component := owner(name)) is not None}


def own_part(source: Source, component: str) -> tuple[Source, dict[str, str]]:
    """Leave out what belongs to other components, where the files hold these, too.

    Args:
        source: All tensors of the files.
        component: Whose are kept, together with those that are nobody's.

    Returns:
        The rest, and those that were left out -> why.
    """
    others = _held(source.tensors) - {component}
    left = {name: f"it belongs to the {part}" for name in source.tensors if (part := owner(name)) in others}
    kept = {name: tensor for name, tensor in source.tensors.items() if name not in left}
    return replace(source, tensors=kept), left


def _held(names: Collection[str]) -> set[str]:
    """The components that are there as a whole, or behind a prefix of their own."""
    held = {component for component, pattern in _PREFIXES if any(map(pattern.match, names))}
    ends = {component: tuple(f".{mark}" for mark in marks) for component, marks in _LANDMARKS.items()}
    for component, marks in _LANDMARKS.items():
        if any(name in marks or (name.endswith(ends[component]) and owner(name) == component) for name in names):
            held.add(component)
    return held
