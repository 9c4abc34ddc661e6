"""Configurations: the published ones are read, and whatever would change the mathematics is refused by name."""

from __future__ import annotations

import json

import pytest
from transformers import PretrainedConfig, Qwen3Config

from max_zimage.checkpoint.config import (
    ConfigError,
    model_specs,
    schedule_spec,
    text_encoder_spec,
    transformer_spec,
    vae_spec,
)
from max_zimage.checkpoint.config_reader import CONFIG_FILES, HUGGING_FACE_KEYS
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.strict_json import shown

# As published with Tongyi-MAI/Z-Image-Turbo and Tongyi-MAI/Z-Image. Both share all but the shift.
TEXT_ENCODER = {
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
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
TRANSFORMER = {
    "_class_name": "ZImageTransformer2DModel",
    "_diffusers_version": "0.36.0.dev0",
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
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.36.0.dev0",
    "_name_or_path": "flux-dev",
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
TURBO_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.36.0.dev0",
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": False,
    "shift": 3.0,
}
BASE_SCHEDULER = TURBO_SCHEDULER | {"shift": 6.0}

FILES = {name: f"{name}/{file}: " for name, file in CONFIG_FILES.items()}
READERS = {
    "text_encoder": (text_encoder_spec, TEXT_ENCODER),
    "transformer": (transformer_spec, TRANSFORMER),
    "vae": (vae_spec, VAE),
    "scheduler": (schedule_spec, TURBO_SCHEDULER),
}


@pytest.mark.parametrize(("scheduler", "shift"), [(TURBO_SCHEDULER, 3.0), (BASE_SCHEDULER, 6.0)])
def test_published_configurations(scheduler, shift):
    specs = model_specs(text_encoder=TEXT_ENCODER, transformer=TRANSFORMER, vae=VAE, scheduler=scheduler)
    text, image = specs.text_encoder, specs.transformer
    assert (text.hidden_size, text.num_layers, text.num_heads, text.num_kv_heads, text.head_dim) == (
        2560,
        36,
        32,
        8,
        128,
    )
    assert (text.vocab_size, text.intermediate_size, text.norm_eps, text.rope_theta) == (151936, 9728, 1e-6, 1e6)
    assert text.max_positions == 40960
    assert (image.dim, image.num_heads, image.num_layers, image.num_refiner_layers) == (3840, 30, 30, 2)
    assert (image.axes_dims, image.axes_lens) == ((32, 48, 48), (1536, 512, 512))
    assert (image.in_channels, image.caption_dim, image.norm_eps) == (16, 2560, 1e-5)
    assert (image.rope_theta, image.t_scale) == (256.0, 1000.0)
    assert (specs.vae.block_out_channels, specs.vae.layers_per_block) == ((128, 256, 512, 512), 2)
    assert (specs.vae.latent_channels, specs.vae.norm_num_groups) == (16, 32)
    assert (specs.vae.scaling_factor, specs.vae.shift_factor) == (0.3611, 0.1159)
    assert (specs.schedule.shift, specs.schedule.num_train_timesteps) == (shift, 1000)


@pytest.mark.parametrize("component", READERS)
def test_the_way_through_hugging_face_changes_nothing(component):
    """MAX reads configurations with transformers, which adds its own keys, and makes its components from them."""
    reader, config = READERS[component]
    kind = Qwen3Config if component == "text_encoder" else PretrainedConfig
    assert reader(kind.from_dict(dict(config)).to_dict()) == reader(config)


def test_tolerated_keys_are_those_that_hugging_face_writes():
    assert set(PretrainedConfig().to_dict()) == HUGGING_FACE_KEYS


@pytest.mark.parametrize("component", READERS)
def test_embedded_model(component):
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    file = EMBEDDED / component / name
    READERS[component][0](json.loads(file.read_text()))


# Component, key, a value that would change the mathematics, and what the message must say beside the key and the value.
UNSUPPORTED = [
    ("text_encoder", "model_type", "qwen2", '"qwen3"'),
    ("text_encoder", "hidden_act", "gelu", '"silu"'),
    ("text_encoder", "attention_bias", True, "false"),
    ("text_encoder", "use_sliding_window", True, "false"),
    ("text_encoder", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "null"),
    ("text_encoder", "layer_types", ["full_attention"] * 35 + ["sliding_attention"], '"full_attention" 36 times'),
    ("text_encoder", "layer_types", ["full_attention"] * 35, '"full_attention" 36 times'),
    ("vae", "quantization_config", {"quant_method": "bitsandbytes"}, "null"),
    ("text_encoder", "num_attention_heads", 30, "cannot share 8"),
    ("text_encoder", "rope_theta", -1.0, "above 0"),
    ("transformer", "_class_name", "Lumina2Transformer2DModel", '"ZImageTransformer2DModel"'),
    ("transformer", "siglip_feat_dim", 1152, "null"),
    ("transformer", "all_patch_size", [1], "[2]"),
    ("transformer", "all_patch_size", [2, 4], "[2]"),
    ("transformer", "all_f_patch_size", [2], "[1]"),
    ("transformer", "n_kv_heads", 10, "30"),
    ("transformer", "qk_norm", False, "true"),
    ("transformer", "qk_norm", 1, "true"),
    ("transformer", "axes_dims", [32, 48], "3 whole numbers"),
    ("transformer", "axes_dims", [32, 48, 64], "128"),
    ("transformer", "dim", 3840.0, "whole number"),
    ("transformer", "n_layers", True, "whole number"),
    ("transformer", "n_layers", 0, "from 1 to 1000"),
    ("transformer", "t_scale", float("nan"), "float32 holds"),
    ("transformer", "t_scale", 1e300, "float32 holds"),
    ("transformer", "norm_eps", 1e-320, "above 0"),
    ("transformer", "n_layers", 10**9, "from 1 to 1000"),
    ("transformer", "axes_lens", [10**9, 512, 512], "from 1 to 65536"),
    ("transformer", "axes_lens", [33, 512, 512], "one caption of 32 tokens"),
    ("transformer", "controlnet_layers", [0, 5], "not a known key"),
    ("vae", "_class_name", "AutoencoderKLWan", '"AutoencoderKL"'),
    ("vae", "act_fn", "relu", '"silu"'),
    ("vae", "in_channels", 4, "3"),
    ("vae", "out_channels", 4, "3"),
    ("vae", "latents_mean", [0.0] * 16, "null"),
    ("vae", "latents_std", [1.0] * 16, "null"),
    ("vae", "mid_block_add_attention", False, "true"),
    ("vae", "use_quant_conv", True, "false"),
    ("vae", "use_post_quant_conv", True, "false"),
    ("vae", "down_block_types", ["DownEncoderBlock2D"] * 3, '"DownEncoderBlock2D" 4 times'),
    ("vae", "up_block_types", ["UpDecoderBlock2D"] * 3 + ["AttnUpDecoderBlock2D"], '"UpDecoderBlock2D" 4 times'),
    ("vae", "shift_factor", None, "a number that float32 holds"),
    ("vae", "shift_factor", 10**400, "float32 holds"),
    ("vae", "block_out_channels", [128] * 10000, "up to 64 whole numbers"),
    ("vae", "scaling_factor", 0, "scaling_factor is 0"),
    ("vae", "block_out_channels", [128, "256", 512, 512], "whole numbers of at least 1"),
    ("scheduler", "_class_name", "EulerDiscreteScheduler", '"FlowMatchEulerDiscreteScheduler"'),
    ("scheduler", "invert_sigmas", True, "false"),
    ("scheduler", "shift", 1e30, "from 0.01 to 100"),
    ("scheduler", "shift", 0, "from 0.01 to 100"),
]


SPECS_OWN_WORDS = (
    "above 0 and below 1",
    "cannot share 8",
    "128",
    "scaling_factor is 0",
    "one caption of 32 tokens",
)  # across fields


@pytest.mark.parametrize(("component", "key", "value", "says"), UNSUPPORTED)
def test_what_changes_the_mathematics_is_refused_by_name(component, key, value, says):
    reader, config = READERS[component]
    with pytest.raises(ConfigError) as caught:
        reader(config | {key: value})
    [problem] = caught.value.problems
    assert problem.startswith(FILES[component])
    assert says in problem
    if says not in SPECS_OWN_WORDS:
        assert key in problem
        assert shown(value) in problem
    assert str(caught.value) == problem  # one line


# Keys with a spec field, and those whose absence means something else to diffusers or transformers.
REQUIRED = [
    *(
        ("text_encoder", key)
        for key in TEXT_ENCODER
        if key.startswith(("num_", "hidden_s", "head_", "vocab", "rms", "rope_t"))
    ),
    *(("text_encoder", key) for key in ("intermediate_size", "max_position_embeddings", "model_type")),
    *(("transformer", key) for key in TRANSFORMER if not key.startswith(("_", "all_", "qk_"))),
    *(("vae", key) for key in VAE if key.endswith(("_conv", "_types", "_factor", "_block", "_groups", "out_channels"))),
    *(("scheduler", key) for key in ("_class_name", "shift", "num_train_timesteps")),
]


@pytest.mark.parametrize(("component", "key"), [(c, k) for c, k in REQUIRED if (c, k) != ("vae", "out_channels")])
def test_missing_keys_are_named(component, key):
    reader, config = READERS[component]
    with pytest.raises(ConfigError, match=f"{FILES[component]}{key} is missing"):
        reader({name: value for name, value in config.items() if name != key})


def test_rope_of_newer_files():
    old = {key: value for key, value in TEXT_ENCODER.items() if key not in ("rope_theta", "rope_scaling")}
    rope = {"rope_theta": 5000000.0, "rope_type": "default"}
    assert text_encoder_spec(old | {"rope_parameters": rope}).rope_theta == 5e6
    for wrong, says in (
        (rope | {"rope_type": "yarn"}, 'rope_type must be "default"'),
        (rope | {"factor": 4.0}, "factor = 4.0 is not a known key"),
        ({"rope_type": "default"}, "rope_theta is missing"),
        (5000000.0, "must be an object"),
    ):
        with pytest.raises(ConfigError, match=says):
            text_encoder_spec(old | {"rope_parameters": wrong})
    with pytest.raises(ConfigError, match="both given"):
        text_encoder_spec(TEXT_ENCODER | {"rope_parameters": rope})


def test_all_problems_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        model_specs(
            text_encoder=TEXT_ENCODER | {"hidden_act": "gelu"},
            transformer={key: value for key, value in TRANSFORMER.items() if key != "dim"} | {"siglip_feat_dim": 1152},
            vae=VAE,
            scheduler=TURBO_SCHEDULER | {"shift": "3"},
        )
    assert [problem.split(" ")[:2] for problem in caught.value.problems] == [
        ["text_encoder/config.json:", "hidden_act"],
        ["transformer/config.json:", "siglip_feat_dim"],
        ["transformer/config.json:", "dim"],
        ["scheduler/scheduler_config.json:", "shift"],
    ]
    assert "4 problems" in str(caught.value)


def test_a_key_that_breaks_a_line_is_shown_on_one():
    with pytest.raises(ConfigError, match=r'vae/config\.json: "two\\nlines" = 1 is not a known key'):
        vae_spec(VAE | {"two\nlines": 1})


def test_components_that_do_not_fit_together():
    with pytest.raises(ConfigError) as caught:
        model_specs(
            text_encoder=TEXT_ENCODER | {"hidden_size": 2048},
            transformer=TRANSFORMER,
            vae=VAE | {"latent_channels": 4},
            scheduler=TURBO_SCHEDULER,
        )
    assert "hidden_size 2048 must equal the transformer's cap_feat_dim 2560" in caught.value.problems[0]
    assert "latent_channels 4 must equal the transformer's in_channels 16" in caught.value.problems[1]
