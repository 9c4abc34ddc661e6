"""The table of weight names written out for a model of a given shape.

specs -> places (layers, blocks, resnets) and sizes -> every tensor that a file must hold, and what it becomes
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from max_zimage.checkpoint.names import (
    TEXT_ENCODER,
    TEXT_ENCODER_DROPPED,
    TEXT_ENCODER_NORM,
    TRANSFORMER,
    TRANSFORMER_DROPPED,
    VAE,
    Dropped,
    Layout,
    Naming,
    Packing,
    Row,
    Shape,
)
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.model.vae import VaeSpec

_COMFY_ENCODER = "text_encoders.qwen3_4b.transformer."
_NORMS = {name for name, _ in (*TEXT_ENCODER_NORM.diffusers, *TEXT_ENCODER_NORM.original)}


@dataclass(frozen=True)
class Place:
    """A place where a row repeats.

    Attributes:
        path: What to put for the braces; the engine's and diffusers' path are the same.
        original: The same in the original naming.
        sizes: Sizes that hold at this place only.
    """

    path: str
    original: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class ParameterTable:
    """A component's table with the sizes and places of one model.

    Attributes:
        component: Folder of the component.
        rows: The table.
        namings: Naming -> what to call it.
        prefixes: What may stand before every name of a file.
        places: Word in braces -> where its rows repeat, in the order they are stacked in.
        sizes: Name of a size -> number.
        dropped: What a file may hold besides.
        unused: Path of a place -> why its tensors, though required, are not loaded.
        rope_theta: Rotary base of the configuration, for files that name one of their own; None for no such files.
    """

    component: str
    rows: tuple[Row, ...]
    namings: Mapping[Naming, str]
    prefixes: tuple[str, ...]
    places: Mapping[str, Sequence[Place]]
    sizes: Mapping[str, int]
    dropped: tuple[Dropped, ...]
    unused: Mapping[str, str]
    rope_theta: float | None = None


@dataclass(frozen=True)
class Expected:
    """A tensor that a file must hold."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ParameterSource:
    """A parameter of the engine and the tensors that it is stacked from.

    Attributes:
        engine: Its name, or what it would be called.
        parts: From the file, in order.
        layout: How each part is turned.
        rotary_heads: Leading heads whose pairs are brought apart.
        head_dim: Their width; 0 where there are none.
        unused: Why it is not loaded; None if it is.
        packing: How it is packed where the graphs take it packed.
    """

    engine: str
    parts: tuple[Expected, ...]
    layout: Layout
    rotary_heads: int
    head_dim: int
    unused: str | None
    packing: Packing | None


def text_encoder_names(spec: TextEncoderSpec, layers_used: int, *, final_norm: bool = False) -> ParameterTable:
    """Names of a text encoder of which only the first layers run.

    Args:
        spec: Its shape; all its layers must be in the file.
        layers_used: See `TextEncoderSpec.layers_used`.
        final_norm: Whether the norm behind all layers is loaded, and must be in the file too.
    """
    reason = f"only the first {layers_used} of {spec.num_layers} layers make the features"
    return ParameterTable(
        component="text_encoder",
        rows=(*TEXT_ENCODER, TEXT_ENCODER_NORM) if final_norm else TEXT_ENCODER,
        namings={"diffusers": "transformers names", "original": "llama.cpp names"},
        prefixes=("model.", "", f"{_COMFY_ENCODER}model.", _COMFY_ENCODER),
        places={"layer": [Place(f"layers.{i}", f"blk.{i}", {}) for i in range(spec.num_layers)]},
        sizes={
            "vocabulary": spec.vocab_size,
            "hidden": spec.hidden_size,
            "query": spec.num_heads * spec.head_dim,
            "key": spec.num_kv_heads * spec.head_dim,
            "head": spec.head_dim,
            "intermediate": spec.intermediate_size,
        },
        dropped=tuple(each for each in TEXT_ENCODER_DROPPED if not final_norm or each.name not in _NORMS),
        unused={f"layers.{index}": reason for index in range(layers_used, spec.num_layers)},
        rope_theta=spec.rope_theta,
    )


def transformer_names(spec: TransformerSpec) -> ParameterTable:
    """Names of a transformer, in diffusers' naming or that of the original single file, which ComfyUI uses too."""
    noise = _places("noise_refiner", spec.num_refiner_layers)
    context = _places("context_refiner", spec.num_refiner_layers)
    layers = _places("layers", spec.num_layers)
    return ParameterTable(
        component="transformer",
        rows=TRANSFORMER,
        namings={"diffusers": "diffusers names", "original": "original single-file names"},
        prefixes=("", "model.diffusion_model.", "diffusion_model.", "transformer."),
        places={"block": noise + context + layers, "modulated": noise + layers},
        sizes={
            "dim": spec.dim,
            "2 dim": 2 * spec.dim,
            "3 dim": 3 * spec.dim,
            "4 dim": 4 * spec.dim,
            "head": spec.head_dim,
            "ffn": spec.ffn_dim,
            "adaln": spec.adaln_dim,
            "patch": spec.patch_dim,
            "caption": spec.caption_dim,
        },
        dropped=TRANSFORMER_DROPPED,
        unused={},
    )


def vae_names(spec: VaeSpec) -> ParameterTable:
    """Names of an autoencoder, in diffusers' naming or that of the original single file (`ae.safetensors`)."""
    widths, last = spec.block_out_channels, len(spec.block_out_channels) - 1
    resnets, resamplers, attentions = [], [], []
    for index, width in enumerate(widths):
        before = widths[max(index - 1, 0)]
        for block in range(spec.layers_per_block):
            sizes = {"in": before if block == 0 else width, "out": width}
            resnets.append(
                Place(f"encoder.down_blocks.{index}.resnets.{block}", f"encoder.down.{index}.block.{block}", sizes)
            )
        if index < last:
            path = f"encoder.down_blocks.{index}.downsamplers.0"
            resamplers.append(Place(path, f"encoder.down.{index}.downsample", {"out": width}))
    # The original file counts the decoder's blocks from the picture inwards, diffusers in the order they run.
    for index, width in enumerate(reversed(widths)):
        before = widths[min(last - index + 1, last)]
        for block in range(spec.layers_per_block + 1):
            sizes = {"in": before if block == 0 else width, "out": width}
            original = f"decoder.up.{last - index}.block.{block}"
            resnets.append(Place(f"decoder.up_blocks.{index}.resnets.{block}", original, sizes))
        if index < last:
            path = f"decoder.up_blocks.{index}.upsamplers.0"
            resamplers.append(Place(path, f"decoder.up.{last - index}.upsample", {"out": width}))
    for half in ("encoder", "decoder"):
        attentions.append(Place(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", {}))
        sizes = {"in": widths[-1], "out": widths[-1]}
        resnets += [Place(f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}", sizes) for i in range(2)]
    return ParameterTable(
        component="vae",
        rows=VAE,
        namings={"diffusers": "diffusers names", "original": "original (Flux) single-file names"},
        prefixes=("", "first_stage_model.", "vae."),
        places={
            "resnet": resnets,
            "widening": [place for place in resnets if place.sizes["in"] != place.sizes["out"]],
            "resampler": resamplers,
            "attention": attentions,
        },
        sizes={
            "latent": spec.latent_channels,
            "2 latent": 2 * spec.latent_channels,
            "shallowest": widths[0],
            "deepest": widths[-1],
        },
        dropped=(),
        unused={},
    )


def weights(names: ParameterTable, naming: Naming, prefix: str) -> list[ParameterSource]:
    """Write the table out for one naming.

    Args:
        names: Table, sizes and places.
        naming: One of `names.namings`.
        prefix: One of `names.prefixes`.

    Returns:
        Every parameter of the component, those of unused places too.
    """
    written = []
    for row in names.rows:
        head_dim = names.sizes["head"] if row.rotary else 0
        sources, layout = (row.diffusers, row.layout) if naming == "diffusers" else (row.original, row.original_layout)
        word = _word(sources[0][0])
        stacked = word is not None and _word(row.engine) is None
        places: Sequence[Place | None] = [None] if word is None else list(names.places[word])
        groups = [places] if stacked else [[place] for place in places]
        for group in groups:
            parts = [_expected(names, prefix, naming, source, place) for place in group for source in sources]
            written.append(
                ParameterSource(
                    engine=_fill(row.engine, "diffusers", group[0]),
                    parts=tuple(parts),
                    layout=layout,
                    rotary_heads=names.sizes[row.rotary] // head_dim if row.rotary else 0,
                    head_dim=head_dim,
                    unused=None if group[0] is None else names.unused.get(group[0].path),
                    packing=row.packing,
                )
            )
    return written


def _places(stem: str, count: int) -> list[Place]:
    return [Place(f"{stem}.{index}", f"{stem}.{index}", {}) for index in range(count)]


def _word(name: str) -> str | None:
    found = re.match(r"\{(\w+)\}", name)
    return found[1] if found else None


def _fill(name: str, naming: Naming, place: Place | None) -> str:
    if place is None:
        return name
    return re.sub(r"^\{\w+\}", place.path if naming == "diffusers" else place.original, name)


def _expected(
    names: ParameterTable, prefix: str, naming: Naming, source: tuple[str, Shape], place: Place | None
) -> Expected:
    name, shape = source
    sizes = {**names.sizes, **(place.sizes if place else {})}
    return Expected(
        prefix + _fill(name, naming, place),
        tuple(size if isinstance(size, int) else sizes[size] for size in shape),
    )
