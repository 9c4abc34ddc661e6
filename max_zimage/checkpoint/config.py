"""Hugging Face configuration JSON to the specs that the graphs define; strict in both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from max_zimage.checkpoint.config_reader import MAX_LAYERS, Config, ConfigError, Reader
from max_zimage.checkpoint.schedule_config import schedule_spec
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.model.vae import VaeSpec
from max_zimage.sampling.positions import RopeSpec
from max_zimage.sampling.schedule import ScheduleSpec
from max_zimage.strict_json import shown

__all__ = [
    "QWEN3_4B",
    "Config",
    "ConfigError",
    "ModelSpecs",
    "model_specs",
    "sample_size",
    "schedule_spec",
    "text_encoder_spec",
    "transformer_spec",
    "vae_spec",
]

SpecT = TypeVar("SpecT")

PIXELS_PER_LATENT = 8
"""Pixels a side that one latent pixel stands for: an image token is 2x2 of them."""

QWEN3_4B = TextEncoderSpec(
    vocab_size=151936,
    hidden_size=2560,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=9728,
    norm_eps=1e-6,
    rope_theta=1e6,
    max_positions=40960,
)
"""The text encoder of the published models."""

USUAL_SIDE = 1024
"""Height and width of a picture where a checkpoint names none; the reference's."""


@dataclass(frozen=True, kw_only=True)
class ModelSpecs:
    """Everything that the configuration files of one checkpoint decide.

    Attributes:
        text_encoder: Shape of the text encoder.
        transformer: Shape of the transformer.
        vae: Shape of the autoencoder.
        schedule: Of the noise levels.
        diffusion_gemma: Shape of a model that writes text, where graphs of one are compiled besides; no checkpoint of
            Z-Image holds one.

    Raises:
        ConfigError: If two components do not fit together.
    """

    text_encoder: TextEncoderSpec
    transformer: TransformerSpec
    vae: VaeSpec
    schedule: ScheduleSpec
    diffusion_gemma: DiffusionGemmaSpec | None = None

    def __post_init__(self) -> None:
        problems = []
        features, latents = self.text_encoder.hidden_size, self.vae.latent_channels
        if features != self.transformer.caption_dim:
            problems.append(
                f"text_encoder/config.json: hidden_size {features} must equal the transformer's cap_feat_dim "
                f"{self.transformer.caption_dim}"
            )
        if latents != self.transformer.in_channels:
            problems.append(
                f"vae/config.json: latent_channels {latents} must equal the transformer's in_channels "
                f"{self.transformer.in_channels}"
            )
        if self.vae.downscale != PIXELS_PER_LATENT:
            problems.append(
                f"vae/config.json: {len(self.vae.block_out_channels)} blocks make latent pixels of "
                f"{self.vae.downscale} pixels a side; Z-Image's have {PIXELS_PER_LATENT}, which 4 blocks make"
            )
        if problems:
            raise ConfigError(problems)


def text_encoder_spec(config: Config) -> TextEncoderSpec:
    """Read a Qwen3 configuration.

    Args:
        config: Contents of `text_encoder/config.json`, or `Qwen3Config.to_dict()`.

    Raises:
        ConfigError: With every missing, unknown or unsupported key.
    """
    read = Reader("text_encoder", config)
    theta = _rope_theta(read)
    layers = read.count("num_hidden_layers", MAX_LAYERS)
    if config.get("layer_types") is None:
        read.known.add("layer_types")
    else:
        read.repeated("layer_types", "full_attention", layers)
    return read.build(
        lambda: TextEncoderSpec(
            vocab_size=read.count("vocab_size"),
            hidden_size=read.count("hidden_size"),
            num_layers=layers,
            num_heads=read.count("num_attention_heads"),
            num_kv_heads=read.count("num_key_value_heads"),
            head_dim=read.count("head_dim"),
            intermediate_size=read.count("intermediate_size"),
            norm_eps=read.positive("rms_norm_eps"),
            rope_theta=theta,
            max_positions=read.count("max_position_embeddings"),
        )
    )


def transformer_spec(config: Config) -> TransformerSpec:
    """Read a Z-Image transformer's configuration, the contents of `transformer/config.json`.

    Raises:
        ConfigError: With every missing, unknown or unsupported key.
    """
    read = Reader("transformer", config)
    heads = read.count("n_heads")
    if read.count("n_kv_heads") != heads and not read.problems:
        read.problem(
            f"n_kv_heads must equal n_heads {heads}, got {config['n_kv_heads']}; heads that share keys and values "
            "are not supported"
        )

    def make() -> TransformerSpec:
        spec = TransformerSpec(
            dim=read.count("dim"),
            num_heads=heads,
            num_layers=read.count("n_layers", MAX_LAYERS),
            num_refiner_layers=read.count("n_refiner_layers", MAX_LAYERS),
            in_channels=read.count("in_channels"),
            caption_dim=read.count("cap_feat_dim"),
            norm_eps=read.positive("norm_eps"),
            rope_theta=read.positive("rope_theta"),
            axes_dims=read.three_counts("axes_dims"),
            axes_lens=read.three_counts("axes_lens"),
            t_scale=read.positive("t_scale"),
        )
        RopeSpec(axes_dims=spec.axes_dims, axes_lens=spec.axes_lens, theta=spec.rope_theta)  # has rules of its own
        return spec

    return read.build(make)


def vae_spec(config: Config) -> VaeSpec:
    """Read an AutoencoderKL's configuration, the contents of `vae/config.json`.

    Raises:
        ConfigError: With every missing, unknown or unsupported key.
    """
    read = Reader("vae", config)
    widths = read.counts("block_out_channels")
    blocks = len(widths) if widths else None
    read.repeated("down_block_types", "DownEncoderBlock2D", blocks)
    read.repeated("up_block_types", "UpDecoderBlock2D", blocks)
    return read.build(
        lambda: VaeSpec(
            latent_channels=read.count("latent_channels"),
            block_out_channels=widths,
            layers_per_block=read.count("layers_per_block", MAX_LAYERS),
            norm_num_groups=read.count("norm_num_groups"),
            scaling_factor=read.number("scaling_factor"),
            shift_factor=read.number("shift_factor"),
        )
    )


def sample_size(config: Config) -> tuple[int, int]:
    """Read the size that an autoencoder was made for, which pictures have unless asked otherwise.

    Args:
        config: Contents of `vae/config.json`.

    Returns:
        Height and width in pixels; 1024, the reference's size, where the configuration names none.

    Raises:
        ConfigError: If it is neither a whole number nor a list of two, height and width.
    """
    given = config.get("sample_size")
    if given is None:
        return USUAL_SIDE, USUAL_SIDE
    sides = given if isinstance(given, list | tuple) else [given, given]
    read = Reader("vae", {"height": sides[0], "width": sides[1]} if len(sides) == 2 else {})
    height, width = read.count("height"), read.count("width")
    if read.problems:
        wanted = "a whole number of pixels, a list of two (height, width), or left out"
        raise ConfigError([f"{read.place}sample_size must be {wanted}, got {shown(given)}"])
    return height, width


def model_specs(
    *, transformer: Config, vae: Config, scheduler: Config, text_encoder: Config | None = None
) -> ModelSpecs:
    """Read the configurations of all components.

    Without one of the text encoder, that of the published models stands in for it, in the width that the transformer
    takes: nobody will run it, and a few limits go by its shape.

    Raises:
        ConfigError: With the problems of all components.
    """
    problems: list[str] = []
    text = None if text_encoder is None else _collect(problems, lambda: text_encoder_spec(text_encoder))
    image = _collect(problems, lambda: transformer_spec(transformer))
    if text_encoder is None and image is not None:
        text = replace(QWEN3_4B, hidden_size=image.caption_dim)
    autoencoder = _collect(problems, lambda: vae_spec(vae))
    schedule = _collect(problems, lambda: schedule_spec(scheduler))
    if text is None or image is None or autoencoder is None or schedule is None:
        raise ConfigError(problems)
    return ModelSpecs(text_encoder=text, transformer=image, vae=autoencoder, schedule=schedule)


def _collect(problems: list[str], read: Callable[[], SpecT]) -> SpecT | None:
    try:
        return read()
    except ConfigError as error:
        problems.extend(error.problems)
        return None


def _rope_theta(read: Reader) -> float:
    """The rotary base, which older files hold at the top level and newer ones in `rope_parameters`."""
    nested = read.config.get("rope_parameters")
    if nested is None:
        read.known.add("rope_parameters")
        return read.positive("rope_theta")
    if read.config.get("rope_theta") is not None:
        read.problem("rope_theta and rope_parameters are both given; keep one")
    read.known.update({"rope_theta", "rope_parameters"})
    if not isinstance(nested, dict):
        read.problem(f"rope_parameters must be an object with rope_theta and rope_type 'default', got {shown(nested)}")
        return 1.0
    inner = Reader("text_encoder", nested, "rope_parameters.")
    inner.equal("rope_type", "default", "the only kind implemented")
    theta = inner.positive("rope_theta")
    read.problems.extend(inner.all_problems())
    return theta
