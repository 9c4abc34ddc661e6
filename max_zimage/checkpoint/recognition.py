"""What a weight file is that is not what it was given for, told by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FOLDER = "a weight file belongs to the component whose folder it stands in, text_encoder, transformer or vae, if any"

_KINDS: tuple[tuple[str, str], ...] = (
    (
        r"lora_|\.lora[._]|\.(lokr|hada)_|\.(dora_scale|diff|diff_b|w_norm|b_norm)$",
        "a LoRA, which changes a model and is none itself; give it with --lora, and a model besides",
    ),
    (r"control_|controlnet|input_hint_block", "a ControlNet, which is not supported"),
    (
        r"(model\.)?diffusion_model\..*|first_stage_model\.|cond_stage_model\.|conditioner\.",
        "a checkpoint of a whole pipeline in one file, of another model or with other parts; give the transformer "
        "alone, or a directory in the diffusers layout",
    ),
    (
        r"(vae\.)?(encoder|decoder)\.(conv_in|conv_out|mid|mid_block|up|down|up_blocks|down_blocks)\b",
        f"a VAE; put it into a folder named vae or of another name, for {_FOLDER}",
    ),
    (
        r"(model\.)?(embed_tokens|layers\.\d+\.(self_attn|mlp|input_layernorm))\b|token_embd\.|blk\.\d+\.",
        "a language model such as a text encoder; put it into a folder named text_encoder or of another name, for "
        f"{_FOLDER}",
    ),
    (r"text_model\.encoder\.layers\.", "a CLIP text encoder, which Z-Image has no use for"),
    (r"(encoder\.block|shared)\.", "a T5 text encoder, which Z-Image has no use for"),
    (
        r"(noise_refiner|context_refiner|cap_embedder)\.",
        f"a Z-Image transformer; put it into a folder named transformer or of another name, for {_FOLDER}",
    ),
    (r"(double_blocks|single_blocks|single_transformer_blocks)\.", "a Flux transformer; only Z-Image's is supported"),
    (r"joint_blocks\.", "a Stable Diffusion 3 transformer; only Z-Image's is supported"),
    (
        r"transformer_blocks\.\d+\.(img_mod|txt_mod|attn)\b",
        "a transformer of another model; only Z-Image's is supported",
    ),
    (r"(down_blocks|mid_block|up_blocks|input_blocks)\.", "a UNet, as of Stable Diffusion; only Z-Image is supported"),
)


def recognized(names: Iterable[str]) -> str | None:
    """Say what a file is, and what to do with it.

    Args:
        names: Of its tensors.

    Returns:
        Words that follow "is"; None if it is nothing that is known.
    """
    known = list(names)
    for pattern, what in _KINDS:
        if any(re.match(pattern, name) or ("lora" in pattern and re.search(pattern, name)) for name in known):
            return what
    return None
