"""An example of a configuration file, with every key of the table as a comment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from max_zimage.request.configuration.key import Key

EXAMPLES: Mapping[str, str] = {
    "model": '"Tongyi-MAI/Z-Image-Turbo"',
    "templates_dir": '"~/templates"',
    "quantize": '"transformer=int8"',
    "weight_path": '["transformer/model.safetensors"]',
    "device": '"cpu"',
    "encoder_device": '"cpu"',
    "dit_device": '"cpu"',
    "vae_device": '"cpu"',
    "devices": '"gpu:0,1"',
    "split": '"tokens"',
    "placement": '"sequential"',
    "max_memory": '"8GiB"',
    "offload": "true",
    "offload_2": "true",
    "offload_3": "true",
    "offload_4": "true",
    "dtype": '"float32"',
    "encoder_dtype": '"float32"',
    "encoder_storage": '"8bit"',
    "encoder_storage_8": "true",
    "encoder_storage_4": "true",
    "embedding_cache": "true",
    "cors_origin": '["https://ui.example.com"]',
    "trusted_proxy": '["10.0.0.0/8"]',
    "state_store": '"file:///shared/state"',
    "ray": '"auto"',
    "replicas": "2",
    "max_replicas": "8",
    "encoders": "1",
    "max_encoders": "4",
    "replica_cpus": "2.0",
    "replica_gpus": "0.5",
    "cache_size": "100",
    "no_metadata_at_all": "true",
    "attention_backend": '"plain"',
    "lora_paths": '["style.safetensors"]',
    "lora_scales": "[0.8]",
    "negative_prompt": '"blurred"',
    "height": "1024",
    "width": "1024",
    "num_inference_steps": "9",
    "sigmas": "[1.0, 0.7, 0.4]",
    "sigma_shape": '"beta"',
    "shift": "3.0",
    "dynamic_shift": "false",
    "shift_terminal": "0.1",
    "sampler": '"heun"',
    "guidance_scale": "4.0",
    "cfg_normalization": "1.0",
    "cfg_truncation": "0.9",
    "seed": "42",
    "max_sequence_length": "256",
    "strength": "0.7",
    "step_cache": '"first_block"',
    "guidance_interval": "[0.0, 0.8]",
    "guidance_variant": '"apg"',
    "guidance_rescale": "0.5",
    "zero_init": "true",
    "apg_eta": "0.5",
    "apg_momentum": "-0.5",
    "apg_norm_threshold": "10.0",
    "slg": "true",
    "slg_scale": "3.0",
    "slg_layers": "[7, 8, 9, 10, 11, 12]",
    "slg_start": "0.1",
    "slg_stop": "0.6",
    "noise": '"torch"',
    "variation_seed": "7",
    "variation_strength": "0.2",
    "long_prompt_mode": '"interpolate"',
    "system_prompt": '"Draw what is asked for."',
    "thinking_content": '"A picture."',
    "assistant_content": '"Here it is."',
    "seed_variance": "0.5",
    "seed_variance_share": "0.3",
    "nag_scale": "5.0",
    "nag_tau": "3.0",
    "nag_alpha": "0.5",
    "nag_sigma_end": "0.5",
    "hidden_layer": "-3",
    "dype": '"yarn"',
    "dype_enabled": "true",
    "dype_method": '"ntk"',
    "dype_scale": "3.0",
    "dype_exponent": "1.0",
    "dype_start_sigma": "0.9",
    "dype_base_resolution": "512",
    "passes": '"0.5x9,1.0x9:0.5"',
    "upscale": '"bicubic"',
    "progressive": "0.5",
    "vae_tiling": '"exact"',
    "vae_tile_size": "256",
    "vae_tile_overlap": "32",
    "template": '"portrait"',
    "enhance": "true",
    "enhance_seed": "7",
    "enhancer_model": '"http://localhost:8080/v1"',
    "enhancer_template": '"~/enhance.md"',
    "enhancer_api_model": '"qwen3-32b"',
    "enhancer_key_file": '"~/key"',
    "enhancer_seconds": "30.0",
    "enhancer_max_tokens": "300",
    "enhancer_temperature": "0.3",
    "enhancer_top_p": "0.9",
    "enhancer_top_k": "40",
}
"""Target of a key -> a value that does something, as TOML writes it; `example_of` has one for each of the others."""

_HEAD = """\
# A configuration file of max-zimage: {place}
# What a profile does not say, [default] does; what the file does not say, the checkpoint does.
# Above the file stand the environment (MAX_ZIMAGE_SECTION_KEY), the picture of --from, and flags.

[default]
"""
_TAIL = """
# A profile of one's own, for --profile rtx4090: it has the same keys and sections.
# [rtx4090]
# [rtx4090.pipeline]
# device = "gpu"
"""


def example_of(key: Key) -> str:
    """A value for a key, as TOML writes it."""
    if key.target in EXAMPLES:
        return EXAMPLES[key.target]
    if not key.types:  # a field that has no example: what it is where nothing is said
        return key.default if key.default.replace(".", "").isdigit() else f'"{key.default}"'
    usual = {bool: "true", int: "8", float: "30.0", list: '["example.org"]', str: '"example"'}
    is_plain = key.default and key.types[:1] in ((int,), (float,))
    return key.default if is_plain else f'"{key.default}"' if key.default and str in key.types else usual[key.types[0]]


def example_text(keys: Mapping[tuple[str, str], Key]) -> str:
    """The file; it is read without a change of anything.

    Args:
        keys: All keys, section by section.
    """
    return (
        _HEAD.format(place="$XDG_CONFIG_HOME/max-zimage/config.toml, or named by --config")
        + "\n".join(_lines(keys))
        + "\n"
        + _TAIL
    )


def _lines(keys: Mapping[tuple[str, str], Key]) -> Iterator[str]:
    section = ""
    for (within, name), key in keys.items():
        if key.way in ("idle", "absent"):
            continue
        if within != section:
            section = within
            yield f"\n[default.{section}]"
        yield f"# {key.help}{f' ({key.default} if not given)' if key.default else ''}"
        yield f"# {name} = {example_of(key)}"
