"""The table of all keys of the configuration file: those of llm-dit, and a key for each field of requests.

`[generation]` has the fields of `max_zimage.request.fields` under their names in Python; other sections have llm-dit's
spellings of some of them. `[server]` has the flags of `max-zimage serve`, which whoever knows them adds.

Reference: reference/generation.md section 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from max_zimage.request.configuration import values
from max_zimage.request.configuration.absent import ABSENT
from max_zimage.request.configuration.idle import ATTENTION, IDLE, said_of
from max_zimage.request.configuration.key import Key
from max_zimage.request.fields import ROWS
from max_zimage.request.row import Of

PER_PICTURE = frozenset(
    {
        "prompt", "image", "mask_image", "soft_mask", "composite", "outpaint", "resize", "latents", "features",
        "denoising_start", "denoising_end", "num_images_per_prompt", "output_type", "loras",
    }
)  # fmt: skip
"""Fields that say what one picture shows or begins with; adapters have a section of their own."""

SECTIONS = (
    "encoder", "pipeline", "generation", "scheduler", "optimization", "pytorch", "lora", "dype", "slg", "fmtt",
    "enhancer", "rewriter", "vl", "qwen_image", "server",
)  # fmt: skip

_IN_PARTS = ("rewriter",)
"""Sections of which some keys mean something here and others are left aside, so that each is named."""
SWITCHED = ("slg", "dype")
"""Sections whose other keys wait until `enabled` is true."""

_SPELLINGS = (
    ("encoder", "max_length", "max_sequence_length"),
    ("encoder", "hidden_layer", "hidden_layer"),
    ("generation", "default_template", "template"),
    ("scheduler", "shift", "shift"),
    ("pytorch", "tile_size", "vae_tile_size"),
    ("pytorch", "tile_overlap", "vae_tile_overlap"),
    ("pytorch", "long_prompt_mode", "long_prompt_mode"),
    ("dype", "dype_scale", "dype_scale"),
    ("dype", "dype_exponent", "dype_exponent"),
    ("dype", "dype_start_sigma", "dype_start_sigma"),
    ("dype", "base_resolution", "dype_base_resolution"),
    ("slg", "enabled", "slg"),
    ("slg", "scale", "slg_scale"),
    ("slg", "layers", "slg_layers"),
    ("slg", "start", "slg_start"),
    ("slg", "stop", "slg_stop"),
)
"""Section, key, field."""

_START: tuple[tuple[str, str, str, tuple[type, ...], Callable[[Any], Any] | None, str, str], ...] = (
    ("", "model_path", "model", (str,), values.path_of, "", "a directory or a hub id; the embedded model if empty"),
    ("", "templates_dir", "templates_dir", (str,), values.path_of, "", "templates of your own, before the shipped"),
    ("", "quantize", "quantize", (str,), None, "", "weights in fewer bits, as transformer=int8,text_encoder=q4"),
    ("", "weight_path", "weight_path", (str, list), values.paths_of, "[]", "files in place of the model's own"),
    ("encoder", "device", "encoder_device", (str,), None, "auto", "of the text encoder; auto is that of the pipeline"),
    ("encoder", "cpu_offload", "offload", (bool,), None, "false", "placement sequential, where there is a GPU"),
    ("encoder", "torch_dtype", "encoder_dtype", (str,), values.dtype_of, "auto", "that of the pipeline"),
    ("encoder", "quantization", "encoder_storage", (str,), values.storage_of, "none",
     "of the text encoder: none, 8bit, int8_dynamic or int8; on a CPU 4bit or q4"),
    ("encoder", "load_in_8bit", "encoder_storage_8", (bool,), lambda on: "int8" if on else "", "false", "8bit"),
    ("encoder", "load_in_4bit", "encoder_storage_4", (bool,), lambda on: "q4" if on else "", "false", "4bit"),
    ("pipeline", "device", "device", (str,), None, "auto", "auto, cpu, gpu or gpu:N"),
    ("pipeline", "torch_dtype", "dtype", (str,), values.dtype_of, "auto", "auto is bfloat16 on a GPU, or float32"),
    ("pipeline", "dit_device", "dit_device", (str,), None, "auto", "of the transformer; auto is that of the pipeline"),
    ("pipeline", "vae_device", "vae_device", (str,), None, "auto", "of the autoencoder; auto is that of the pipeline"),
    ("pipeline", "devices", "devices", (str, list), None, "",
     "GPUs that the transformer runs on together, as gpu:0,1 or a list, in place of device"),
    ("pipeline", "split", "split", (str,), None, "auto", "what they share: tokens, branches of guidance, or auto"),
    ("pipeline", "placement", "placement", (str,), None, "auto",
     "resident (all components stay in memory), sequential (text encoder and transformer take turns), streamed (and "
     "the transformer's blocks come one after another) or auto"),
    ("pipeline", "max_memory", "max_memory", (int, str), None, "",
     "of the transformer's device, in bytes or as 8GiB; all there is if not given"),
    ("pipeline", "enable_model_cpu_offload", "offload_2", (bool,), None, "false", "the same as [encoder] cpu_offload"),
    ("pipeline", "enable_sequential_cpu_offload", "offload_3", (bool,), None, "false",
     "the same as [encoder] cpu_offload"),
    ("optimization", "cpu_offload", "offload_4", (bool,), None, "false", "the same as [encoder] cpu_offload"),
    ("pytorch", "attention_backend", "attention_backend", (str,), values.attention_of, "auto",
     f"how attention is computed: {', '.join(values.ATTENTION)}"),
    ("pytorch", "embedding_cache", "embedding_cache", (bool, int, str), values.cache_of, "serve: 256MiB; else false",
     "whether features of prompts are kept, or how many bytes of them, as 512MiB"),
    ("pytorch", "cache_size", "cache_size", (int,), values.entries_of, "100",
     f"prompts, {values.TOKENS_KEPT / 2**20:g} MiB each, if embedding_cache is true"),
    ("generation", "no_metadata", "no_metadata_at_all", (bool,), None, "false",
     "pictures carry pixels alone; [server] no_metadata says it of a server alone"),
    ("lora", "paths", "lora_paths", (list,), values.paths_of, "[]", "adapters of pictures that name none"),
    ("lora", "scales", "lora_scales", (list,), values.scales_of, "1.0 each", "of them, in their order"),
    ("enhancer", "model", "enhancer_model", (str,), values.path_of, "",
     "who writes prompts out: embedded, encoder, a folder of DiffusionGemma, or an http(s) address"),
    ("enhancer", "template", "enhancer_template", (str,), values.path_of, "",
     "a file with what a model is told before the prompt; the shipped one if empty"),
    ("enhancer", "api_model", "enhancer_api_model", (str,), None, "",
     "what an API calls its model; the first one that it lists if empty"),
    ("enhancer", "key_file", "enhancer_key_file", (str,), values.path_of, "",
     "holds the key of an API; else MAX_ZIMAGE_ENHANCER_KEY does, if set"),
    ("enhancer", "seconds", "enhancer_seconds", (float,), None, "60", "that a prompt may take"),
    ("enhancer", "max_tokens", "enhancer_max_tokens", (int,), None, "512", "of an answer"),
    ("enhancer", "temperature", "enhancer_temperature", (float,), None, "0.6", "of encoder and APIs; 0 is greedy"),
    ("enhancer", "top_p", "enhancer_top_p", (float,), None, "0.95", "share of the probability that they draw from"),
    ("enhancer", "top_k", "enhancer_top_k", (int,), None, "20", "tokens that encoder draws from; 0 for all"),
    ("rewriter", "use_api", "rewriter_use_api", (bool,), None, "false", "whether api_url and api_model count"),
    ("rewriter", "api_url", "enhancer_model", (str,), values.api_of, "",
     "the same as [enhancer] model, without the /v1 of its path; waits for use_api"),
    ("rewriter", "api_model", "enhancer_api_model", (str,), None, "",
     "the same as [enhancer] api_model; waits for use_api"),
    ("rewriter", "timeout", "enhancer_seconds", (float,), None, "60", "the same as [enhancer] seconds"),
    ("rewriter", "max_tokens", "enhancer_max_tokens", (int,), None, "512", "the same as [enhancer] max_tokens"),
    ("rewriter", "temperature", "enhancer_temperature", (float,), None, "0.6", "the same as [enhancer] temperature"),
    ("rewriter", "top_p", "enhancer_top_p", (float,), None, "0.95", "the same as [enhancer] top_p"),
    ("rewriter", "top_k", "enhancer_top_k", (int,), None, "20", "the same as [enhancer] top_k"),
)  # fmt: skip
"""Section, key, setting, types, conversion, default, help."""

_MORE: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("pytorch", "attention_backend"): {
        "others": values.OTHER_ATTENTION,
        "sentence": said_of(f"[pytorch] attention_backend as {' or '.join(values.OTHER_ATTENTION)}", ATTENTION),
    },
    **{("rewriter", name): {"waits_for": "use_api"} for name in ("api_url", "api_model")},
}
"""Section, key -> what else there is to know of it: values that are llm-dit's alone, a key that it waits for."""


def keys_of(server: Mapping[str, Key] | None = None) -> dict[tuple[str, str], Key]:
    """All keys by section and name, section by section.

    Args:
        server: Those of `[server]`, by name; None where nobody asks for them.
    """
    found = {(each.section, each.name): each for each in _all_keys()}
    found |= {("server", name): key for name, key in (server or {}).items()}
    order = ("", *SECTIONS)
    return dict(sorted(found.items(), key=lambda each: order.index(each[0][0])))


def _all_keys() -> Iterator[Key]:
    for section, name, target, types, convert, default, help in _START:
        flag = f"--rewriter-{name.replace('_', '-')}" if section == "rewriter" else ""
        yield Key(
            section=section, name=name, way="start", target=target, types=types, convert=convert, default=default,
            help=help, flag=flag, **_MORE.get((section, name), {}),
        )  # fmt: skip
    for name, row in ROWS.items():
        if name not in PER_PICTURE and row.flag is not None:
            yield _of_field("generation", name, name)
    for section, name, target in _SPELLINGS:
        yield _of_field(section, name, target)
    yield _of_field("dype", "enabled", "dype", target="dype_enabled", types=(bool,), default="false")
    yield _of_field("dype", "method", "dype", target="dype_method", types=(str,), default="vision_yarn")
    yield _of_field("pytorch", "tiled_vae", "vae_tiling", types=(bool, str), convert=values.tiling_of)
    for each in IDLE:
        for section, name in each.keys:
            line = said_of(f"[{section}] {name}", each.line)
            yield Key(
                section=section, name=name, way="idle", types=(each.type,), off=(each.off,), sentence=line,
                help=f"nothing: {each.line}",
            )  # fmt: skip
    for part in ABSENT:
        for name, off in part.asking if part.section else ():
            yield Key(
                section=part.section, name=name, way="absent", off=off, sentence=part.sentence, help=part.sentence
            )
        for name in part.others or ():
            of = f"[{part.section}]{f' {name}' if part.section in _IN_PARTS else ''}"
            aside = f"{of} is left aside: {part.sentence}"
            yield Key(section=part.section, name=name, way="absent", off=None, sentence=aside, help=part.sentence)


def _of_field(section: str, name: str, field: str, **more: Any) -> Key:
    row = ROWS[field]
    usual = row.default
    default = "the checkpoint's" if isinstance(usual, Of) else "" if usual is None else _written(usual)
    help = row.flag.help if row.flag else ""
    said = {"section": section, "name": name, "way": "field", "target": field, "help": help, "default": default}
    return Key(**said | more)


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
