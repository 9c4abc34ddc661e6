"""How adapters spell the names of their tensors: a prefix, a module's name, and a suffix that says what it is.

A suffix is one of a list. What stands before it is looked up among all spellings of all modules of the model, which are
written out once: underscores for dots cannot be turned back, since the names have underscores of their own.

References: ComfyUI comfy/lora.py and comfy/weight_adapter; stable-diffusion.cpp src/model/adapter/lora.hpp; diffusers
loaders/lora_conversion_utils.py; musubi-tuner networks/lora_zimage.py; OneTrainer modules/util/convert; InvokeAI
invokeai/backend/patches/lora_conversions/z_image_lora_conversion_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

from max_zimage.checkpoint.adapters.modules import COMPONENTS, Module, modules
from max_zimage.checkpoint.config import ModelSpecs

DOTTED: Mapping[str, tuple[str, ...]] = {
    "transformer": (
        "",
        "transformer.",
        "diffusion_model.",
        "base_model.model.",
        "base_model.model.transformer.",
        "transformer.diffusion_model.",
        "pipe.dit.",
    ),
    "text_encoder": (
        "text_encoder.",
        "text_encoder.model.",
        "base_model.model.model.",
        "base_model.model.text_encoder.",
        "base_model.model.text_encoder.model.",
        "text_encoders.qwen3_4b.transformer.model.",
    ),
}
"""Component -> what stands before a module's name as it is."""

UNDERSCORED: Mapping[str, tuple[str, ...]] = {
    "transformer": ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_"),
    "text_encoder": ("lora_te_",),
}
"""Component -> what stands before a module's name with underscores for its dots."""

SUFFIXES: Mapping[str, str] = {
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_A": "down",
    ".lora_down.weight": "down",
    ".lora_down.default.weight": "down",
    ".lora.down.weight": "down",
    "_lora.down.weight": "down",
    ".lora_linear_layer.down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".lora_B": "up",
    ".lora_up.weight": "up",
    ".lora_up.default.weight": "up",
    ".lora.up.weight": "up",
    "_lora.up.weight": "up",
    ".lora_linear_layer.up.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_B.default.bias": "up_bias",
    ".alpha": "alpha",
    ".scale": "scale",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    **{f".hada_{factor}": f"hada_{factor}" for factor in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{f".lokr_{factor}": f"lokr_{factor}" for factor in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    ".diff": "diff",
    ".w_norm": "diff",
    ".diff_b": "diff_b",
    ".b_norm": "diff_b",
}
"""Suffix -> which part of a module's change it is."""

BIAS = ".bias"
"""Suffix of a whole bias, which PEFT writes where its configuration says that biases were trained."""

_CONVOLUTION = "the middle of a convolution's adapter, and the model has no convolutions that adapters change"
_GLORA = "GLoRA is not supported"
_OFT = "OFT and BOFT (rotations) are not supported"
REFUSED: Mapping[str, str] = {
    ".lora_mid.weight": _CONVOLUTION,
    ".hada_t1": _CONVOLUTION,
    ".hada_t2": _CONVOLUTION,
    ".lokr_t2": _CONVOLUTION,
    **{f".{factor}.weight": _GLORA for factor in ("a1", "a2", "b1", "b2")},
    ".oft_blocks": _OFT,
    ".oft_R": _OFT,
    ".oft_R.weight": _OFT,
    ".oft_R.default.weight": _OFT,
    ".rescale": _OFT,
    ".set_weight": "weights in place of the model's (set_weight) are a checkpoint's part, not an adapter's",
    ".reshape_weight": "weights of another size than the model's (reshape_weight) are not supported",
}
"""Suffix -> why it is refused."""

# Those whose tensors tell an adapter: no checkpoint has names that end in them.
_TELLING = tuple(suffix for suffix in SUFFIXES if suffix not in (".scale", ".alpha")) + tuple(
    suffix for suffix in REFUSED if not suffix.endswith((".weight", ".rescale"))
)


def split(name: str, *, with_biases: bool = False) -> tuple[str, str] | None:
    """Take a tensor's name apart.

    Args:
        name: In the adapter's file.
        with_biases: Whether a whole bias is a part of the adapter.

    Returns:
        What stands before the suffix, and the suffix; None if the name ends in none that is known.
    """
    known = [suffix for suffix in (*SUFFIXES, *REFUSED) if name.endswith(suffix)]
    if known:
        suffix = max(known, key=len)
        return name.removesuffix(suffix), suffix
    return (name.removesuffix(BIAS), BIAS) if with_biases and name.endswith(BIAS) else None


def is_adapter(names: Iterable[str]) -> bool:
    """Whether tensors are an adapter's, as far as their names tell."""
    return any(name.endswith(_TELLING) for name in names)


@lru_cache(maxsize=8)
def spellings(specs: ModelSpecs) -> Mapping[str, Module]:
    """Everything that may stand before a suffix, for all modules of a model."""
    found = {}
    for component in COMPONENTS:
        for module in modules(specs, component):
            found.update({prefix + module.name: module for prefix in DOTTED[component]})
            underscored = module.name.replace(".", "_")
            found.update({prefix + underscored: module for prefix in UNDERSCORED[component]})
    return MappingProxyType(found)
