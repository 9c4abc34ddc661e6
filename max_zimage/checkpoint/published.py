"""The configuration files of the published Z-Image models, for weights that come without any.

Z-Image and Z-Image-Turbo have the same shapes; they differ in their weights and in the scheduler's shift.

Reference: the JSON files of Tongyi-MAI/Z-Image and Tongyi-MAI/Z-Image-Turbo.
"""

from __future__ import annotations

from collections.abc import Mapping

TURBO_SHIFT, BASE_SHIFT = 3.0, 6.0
TOKENIZER_CLASS = "Qwen2Tokenizer"

Json = dict[str, object]

TEXT_ENCODER: Mapping[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

TRANSFORMER: Mapping[str, object] = {
    "_class_name": "ZImageTransformer2DModel",
    "all_f_patch_size": [1],
    "all_patch_size": [2],
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "cap_feat_dim": 2560,
    "dim": 3840,
    "in_channels": 16,
    "n_heads": 30,
    "n_kv_heads": 30,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
}

VAE: Mapping[str, object] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}


def published_configs(shift: float = BASE_SHIFT) -> dict[str, Json]:
    """Contents of the configuration files of all components.

    Args:
        shift: Of the scheduler: `TURBO_SHIFT` or `BASE_SHIFT`, unless a fine-tune has its own.

    Returns:
        For text_encoder, transformer, vae and scheduler.
    """
    return {
        "text_encoder": dict(TEXT_ENCODER),
        "transformer": dict(TRANSFORMER),
        "vae": dict(VAE),
        "scheduler": {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": shift,
            "use_dynamic_shifting": False,
        },
    }


def published_index() -> Json:
    """Contents of `model_index.json`."""
    return {
        "_class_name": "ZImagePipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", TOKENIZER_CLASS],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
