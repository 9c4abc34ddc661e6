"""A DiffusionGemma's `config.json`, read strictly: a key is a size, has the one value implemented, or plays no part.

What other readers take in silence is said: ties that are undone, another kind of rotary positions, a plain Gemma.
Reference: transformers models/diffusion_gemma/configuration_diffusion_gemma.py; what it fills in where a key is absent
is filled in here alike, as far as it is no size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from max_zimage import progress
from max_zimage.checkpoint.config_reader import HUGGING_FACE_KEYS, MAX_LAYERS, Config, ConfigError, Reader
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec, LayerShape, LayerType
from max_zimage.strict_json import read_object, shown

FILE = "config.json"
MODEL_TYPE, TEXT_TYPE = "diffusion_gemma", "diffusion_gemma_text"
SOFTCAP = 30.0
"""Of a configuration that names none: the class's own value, which is left out of a saved file."""

_PATTERN = 6
_KINDS: tuple[LayerType, ...] = get_args(LayerType)
_IMPLEMENTED = "the only value implemented"
_INERT = HUGGING_FACE_KEYS | {"_diffusers_version", "initializer_range", "quantization_config", "torch_dtype"}
_INERT_TEXT = _INERT | {
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "use_cache",
    "vocab_size_per_layer_input",  # of embeddings for each layer, of which there are none
}
_ONLY_TEXT: dict[str, object] = {
    "attention_bias": False,
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}
_IMAGE_TOKENS = {"image_token_id": 258880, "boi_token_id": 255999, "eoi_token_id": 258882}
"""What transformers takes where they are absent; null is none."""
_MUST_BE_SET = ("num_global_key_value_heads", "num_experts", "top_k_experts", "moe_intermediate_size")
_OTHERS = {
    "gemma4": "a plain Gemma 4, which writes token by token",
    "gemma4_text": "a plain Gemma 4, which writes token by token",
    "gemma3": "a Gemma 3, which writes token by token",
    "gemma3_text": "a Gemma 3, which writes token by token",
    TEXT_TYPE: "the text part of a DiffusionGemma's configuration; give the whole",
}


@dataclass(frozen=True, kw_only=True)
class DiffusionGemmaFile:
    """What stands in a DiffusionGemma's configuration.

    Attributes:
        spec: Its shape.
        image_token_id: Stands for a piece of an image in a prompt; None for none.
        boi_token_id: Begins an image.
        eoi_token_id: Ends one.
        has_vision: Whether it describes a vision tower, which is skipped.
    """

    spec: DiffusionGemmaSpec
    image_token_id: int | None
    boi_token_id: int | None
    eoi_token_id: int | None
    has_vision: bool

    @property
    def image_tokens(self) -> frozenset[int]:
        """Tokens of the vocabulary that stand for images."""
        ids = (self.image_token_id, self.boi_token_id, self.eoi_token_id)
        return frozenset(each for each in ids if each is not None and 0 <= each < self.spec.vocab_size)


def is_diffusion_gemma(directory: Path) -> bool:
    """Whether a folder holds the configuration of a DiffusionGemma, sound or not.

    Raises:
        CheckpointError: If its `config.json` cannot be read.
    """
    file = directory.expanduser() / FILE
    return file.is_file() and read_object(file).get("model_type") == MODEL_TYPE


def read_file(directory: Path) -> DiffusionGemmaFile:
    """Read the configuration of a checkpoint.

    Args:
        directory: Holds `config.json`.

    Raises:
        ConfigError: With every missing, unknown or unsupported key.
        CheckpointError: If there is no such file, or it is no JSON object.
    """
    return read_config(read_object(directory / FILE), str(directory / FILE))


def read_config(config: Config, file: str = FILE) -> DiffusionGemmaFile:
    """Read a configuration.

    Args:
        config: Contents of `config.json`, or `DiffusionGemmaConfig.to_dict()`.
        file: What it is called in errors.

    Raises:
        ConfigError: With every missing, unknown or unsupported key.
    """
    read = _Reader(MODEL_TYPE, config, file=file)
    _check_type(read, file)
    read.tied()
    text = config.get("text_config")
    read.known |= {"text_config", "vision_config", "model_type"} | _INERT
    if not isinstance(text, dict):
        raise ConfigError(
            [f"{read.place}text_config must be an object with the sizes of the text part, got {shown(text)}"]
        )
    canvas = read.count("canvas_length")
    ids = [read.token(key, usual) for key, usual in _IMAGE_TOKENS.items()]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "video_token_id", "audio_token_id", "use_cache"):
        read.known.add(key)
    inner = _Reader(MODEL_TYPE, text, "text_config.", file=file)
    spec, mismatch = None, None
    try:
        spec = _text_spec(inner, canvas)
    except ValueError as error:  # a rule across fields; means nothing if one of them could not be read
        mismatch = str(error)
    problems = read.all_problems() + inner.all_problems()
    if spec is None or problems:
        raise ConfigError(problems or [f"{inner.place}{mismatch}"])
    has_vision = config.get("vision_config") is not None
    return DiffusionGemmaFile(
        spec=spec, image_token_id=ids[0], boi_token_id=ids[1], eoi_token_id=ids[2], has_vision=has_vision
    )


class _Reader(Reader):
    """Keys that only a DiffusionGemma has."""

    def tied(self) -> None:
        """Require what is tied to stay tied."""
        self.known.add("tie_word_embeddings")
        if self.config.get("tie_word_embeddings", True) is not True:
            self.problem(
                f"tie_word_embeddings must be true, got {shown(self.config['tie_word_embeddings'])}: false undoes the "
                "ties of encoder and decoder too, and this engine has one stack for both"
            )

    def token(self, key: str, usual: int | None = None) -> int | None:
        """A token's number, or null; the usual one where the key is absent."""
        self.known.add(key)
        given = self.config.get(key, usual)
        if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 0):
            self.problem(f"{key} must be a whole number from 0 on, or null, got {shown(given)}")
            return None
        return given

    def optional(self, key: str, value: object) -> None:
        """Require one value of a key that may be absent."""
        if key in self.config:
            self.equal(key, value, _IMPLEMENTED)


def _check_type(read: Reader, file: str) -> None:
    given = read.config.get("model_type")
    if given != MODEL_TYPE:
        what = _OTHERS.get(given, "another model") if isinstance(given, str) else "no configuration of a text model"
        raise ConfigError(
            [
                f"{file}: model_type must be {shown(MODEL_TYPE)}, got {shown(given)}: this is {what}; use a "
                "DiffusionGemma, such as google/diffusiongemma-26B-A4B-it"
            ]
        )


def _text_spec(read: _Reader, canvas: int) -> DiffusionGemmaSpec:
    read.known |= _INERT_TEXT | {"model_type"}
    read.optional("model_type", TEXT_TYPE)
    for key, value in _ONLY_TEXT.items():
        read.optional(key, value)
    read.tied()
    _check_attention(read)
    for key in _MUST_BE_SET:
        if read.config.get(key) is None and key in read.config:
            read.known.add(key)
            read.problem(f"{key} must be a whole number of at least 1, got null: transformers cannot run it so either")
    layers = read.count("num_hidden_layers", MAX_LAYERS)
    types = _layer_types(read, layers)
    vocabulary, pad = read.count("vocab_size"), read.token("pad_token_id")
    if pad is not None and pad >= vocabulary and not read.problems:
        read.problem(f"vocab_size {vocabulary} must be above pad_token_id {pad}: padding has an embedding of its own")
    head_dim = read.count("head_dim")
    wide = _global_head_dim(read, head_dim)
    sliding_theta, _ = _rope(read, "sliding_attention", "default", types)
    full_theta, part = _rope(read, "full_attention", "proportional", types)
    return DiffusionGemmaSpec(
        vocab_size=vocabulary,
        hidden_size=read.count("hidden_size"),
        intermediate_size=read.count("intermediate_size"),
        expert_size=_set(read, "moe_intermediate_size"),
        num_experts=_set(read, "num_experts"),
        experts_per_token=_set(read, "top_k_experts"),
        num_heads=read.count("num_attention_heads"),
        sliding=LayerShape(
            key_heads=read.count("num_key_value_heads"),
            head_dim=head_dim,
            has_values=True,
            rope_theta=sliding_theta,
            rotated=head_dim // 2,
        ),
        full=LayerShape(
            key_heads=_set(read, "num_global_key_value_heads"),
            head_dim=wide,
            has_values=False,
            rope_theta=full_theta,
            rotated=int(part * wide // 2),
        ),
        layer_types=types,
        sliding_window=read.count("sliding_window"),
        norm_eps=read.positive("rms_norm_eps"),
        softcap=read.positive("final_logit_softcapping") if "final_logit_softcapping" in read.config else SOFTCAP,
        canvas_length=canvas,
        max_positions=read.count("max_position_embeddings"),
    )


def _set(read: Reader, key: str) -> int:
    """A count that may not be null; null has been said."""
    return 1 if key in read.config and read.config[key] is None else read.count(key)


def _check_attention(read: Reader) -> None:
    """Refuse an encoder that sees what comes later. Of images alone that is no matter: there are none."""
    read.known.add("use_bidirectional_attention")
    given = read.config.get("use_bidirectional_attention")
    if given not in (None, "vision"):
        read.problem(
            f'use_bidirectional_attention must be null or "vision", got {shown(given)}: prompts are read from left to '
            "right, and what was read is kept"
        )


def _layer_types(read: Reader, layers: int) -> tuple[LayerType, ...]:
    """The types of all layers; the last one is always full, as transformers has it."""
    read.known.add("layer_types")
    given = read.config.get("layer_types")
    if given is None:
        given = [_KINDS[(index + 1) % _PATTERN == 0] for index in range(layers)]
    elif not isinstance(given, list | tuple) or len(given) != layers or any(each not in _KINDS for each in given):
        words = " or ".join(map(shown, _KINDS))
        read.problem(f"layer_types must be {words} for each of the {layers} layers, got {shown(given)}")
        return ("full_attention",)
    elif given[-1] != "full_attention":
        progress.note(
            f"{read.place}layer_types ends with {given[-1]}; the last layer is full_attention, as in transformers"
        )
    return (*given[:-1], "full_attention")


def _global_head_dim(read: Reader, head_dim: int) -> int:
    """Width of a head of full attention; where it is 0 or null, that of the others."""
    read.known.add("global_head_dim")
    return read.count("global_head_dim") if read.config.get("global_head_dim", 0) else head_dim


def _rope(read: Reader, kind: LayerType, form: str, types: tuple[LayerType, ...]) -> tuple[float, float]:
    """Rotary base of a type of layer, and the part of a head that turns."""
    usual = (10_000.0, 1.0) if kind == "sliding_attention" else (1_000_000.0, 0.25)
    read.known.add("rope_parameters")
    both = read.config.get("rope_parameters")
    if both is None:
        return usual
    given = both.get(kind) if isinstance(both, dict) else None
    if given is None and kind not in types and isinstance(both, dict):
        return usual
    if not isinstance(given, dict):
        read.problem(f"rope_parameters must be an object with an object {kind}, got {shown(both)}")
        return usual
    inner = Reader(MODEL_TYPE, given, f"text_config.rope_parameters.{kind}.", file=read.place.split(": ")[0])
    inner.equal("rope_type", form, "the only kind implemented for these layers")
    theta = inner.positive("rope_theta")
    part = 1.0
    if form == "proportional":
        part = inner.within("partial_rotary_factor", 0.0, 1.0)
    read.problems.extend(inner.all_problems())
    return theta, part
