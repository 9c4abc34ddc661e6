"""What random checkpoints look like: their shapes, and the configuration files that say them.

The configurations hold the keys of the published files, so that diffusers and transformers read them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from max_zimage import embedded
from max_zimage.checkpoint.config import ModelSpecs, model_specs
from max_zimage.checkpoint.locate import CONFIG_FILES, read_config
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.model.vae import VaeSpec

TURBO_SHIFT, BASE_SHIFT = 3.0, 6.0
Json = dict[str, object]


_PUBLISHED = replace(FULL_MODEL, diffusion_gemma=None)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size of checkpoint.

    Attributes:
        specs: Shapes of all components.
        sample_size: Sides of a picture where none are asked for, in pixels.
    """

    specs: ModelSpecs
    sample_size: int


def _small() -> Size:
    """The embedded model's shapes, whose graphs are compiled wherever its tests have run."""
    return Size(
        specs=model_specs(**{name: read_config(embedded.PATH, name) for name in CONFIG_FILES}),
        sample_size=128,
    )


def _medium() -> Size:
    """Every part at a third of the published width or so, and 8 layers of each kind; the published autoencoder."""
    text = replace(FULL_MODEL.text_encoder, hidden_size=1024, num_heads=16, intermediate_size=3072, num_layers=8)
    image = replace(FULL_MODEL.transformer, dim=1536, num_heads=12, num_layers=8, caption_dim=1024)
    return Size(specs=replace(_PUBLISHED, text_encoder=text, transformer=image), sample_size=256)


SIZES = {
    "full": lambda: Size(specs=_PUBLISHED, sample_size=1024),
    "medium": _medium,
    "small": _small,
}
"""Name -> what makes the size. The full one has the shapes of Z-Image and Z-Image-Turbo."""


def size_of(name: str, *, layers: int | None = None, text_layers: int | None = None, turbo: bool = False) -> Size:
    """Find a size.

    Args:
        name: One of `SIZES`.
        layers: Main layers of the transformer in place of the size's.
        text_layers: Layers of the text encoder in place of the size's, at least 2.
        turbo: Whether the schedule is that of the distilled model.

    Raises:
        ValueError: If there is no such size, or a number of layers is too small.
    """
    if name not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {name!r}")
    if layers is not None and layers < 1:
        raise ValueError(f"layers must be 1 or more, got {layers}")
    size = SIZES[name]()
    text, image = size.specs.text_encoder, size.specs.transformer
    schedule = replace(size.specs.schedule, shift=TURBO_SHIFT if turbo else BASE_SHIFT)
    specs = replace(
        size.specs,
        text_encoder=replace(text, num_layers=text.num_layers if text_layers is None else text_layers),
        transformer=replace(image, num_layers=layers or image.num_layers),
        schedule=schedule,
    )
    return replace(size, specs=specs)


def configs(size: Size, dtype: ModelDtype) -> dict[str, Json]:
    """Contents of the components' configuration files.

    Args:
        size: Shapes.
        dtype: Of the weights.

    Returns:
        For text_encoder, transformer, vae and scheduler.
    """
    specs = size.specs
    return {
        "text_encoder": _text_encoder(specs.text_encoder, dtype),
        "transformer": _transformer(specs.transformer),
        "vae": _vae(specs.vae, size.sample_size),
        "scheduler": {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": specs.schedule.num_train_timesteps,
            "shift": specs.schedule.shift,
            "use_dynamic_shifting": False,
        },
    }


def model_index(tokenizer_class: str) -> Json:
    """Contents of `model_index.json`."""
    parts: Mapping[str, list[str]] = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    return {"_class_name": "ZImagePipeline", "_diffusers_version": "0.36.0", **parts}


def _text_encoder(spec: TextEncoderSpec, dtype: ModelDtype) -> Json:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": spec.intermediate_size,
        "max_position_embeddings": spec.max_positions,
        "max_window_layers": spec.num_layers,
        "model_type": "qwen3",
        "num_attention_heads": spec.num_heads,
        "num_hidden_layers": spec.num_layers,
        "num_key_value_heads": spec.num_kv_heads,
        "rms_norm_eps": spec.norm_eps,
        "rope_scaling": None,
        "rope_theta": spec.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": spec.vocab_size,
    }


def _transformer(spec: TransformerSpec) -> Json:
    return {
        "_class_name": "ZImageTransformer2DModel",
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "axes_dims": list(spec.axes_dims),
        "axes_lens": list(spec.axes_lens),
        "cap_feat_dim": spec.caption_dim,
        "dim": spec.dim,
        "in_channels": spec.in_channels,
        "n_heads": spec.num_heads,
        "n_kv_heads": spec.num_heads,
        "n_layers": spec.num_layers,
        "n_refiner_layers": spec.num_refiner_layers,
        "norm_eps": spec.norm_eps,
        "qk_norm": True,
        "rope_theta": spec.rope_theta,
        "t_scale": spec.t_scale,
    }


def _vae(spec: VaeSpec, sample_size: int) -> Json:
    blocks = len(spec.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(spec.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": spec.latent_channels,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": spec.layers_per_block,
        "mid_block_add_attention": True,
        "norm_num_groups": spec.norm_num_groups,
        "out_channels": 3,
        "sample_size": sample_size,
        "scaling_factor": spec.scaling_factor,
        "shift_factor": spec.shift_factor,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }
