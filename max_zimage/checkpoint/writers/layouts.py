"""The layouts that a checkpoint can be written in: which names its tensors have, and what each is stored as.

References: names and prefixes of single files as ComfyUI reads them (comfy/sd.py, comfy/supported_models.py), float8
with scales as its QUANTIZATION.md says; layers that stay out of float8 as convert_to_quant's `--zimage` leaves them;
GGUF files as city96/ComfyUI-GGUF makes them (tools/convert.py), text encoders as llama.cpp's `qwen3`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from max_zimage.checkpoint.locate import COMPONENTS
from max_zimage.checkpoint.names import Naming
from max_zimage.checkpoint.writers.encodings import BLOCKS, FLOATS, FP8
from max_zimage.checkpoint.writers.items import Entry, Item, Json, Plain, Scale, Scaled

_SMALL = 1024  # numbers of a tensor that GGUF files keep in float32


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a component's tensors are called in a layout.

    Attributes:
        naming: Column of the table of names.
        prefix: Stands before all of them.
        head: The text encoder's matrix that predicts words, which is not in the table.
        file: Of the one file that a component has in a folder.
    """

    naming: Naming
    prefix: str = ""
    head: str = "lm_head.weight"
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout.

    Attributes:
        names: Component -> what its tensors are called; what is not here cannot be written.
        types: That it can hold, by name.
        ends: How a file's name must end; empty for a layout that is a folder.
        folder: Whether it is, or may be, a folder of several files.
    """

    names: Mapping[str, Names]
    types: tuple[str, ...]
    ends: str = ""
    folder: bool = False


LAYOUTS: Mapping[str, Layout] = {
    "diffusers": Layout(
        names={
            "text_encoder": Names(naming="diffusers", prefix="model.", file="model"),
            "transformer": Names(naming="diffusers", file="diffusion_pytorch_model"),
            "vae": Names(naming="diffusers", file="diffusion_pytorch_model"),
        },
        types=(*FLOATS,),
        folder=True,
    ),
    "original": Layout(
        names={
            "text_encoder": Names(naming="diffusers", prefix="model.", file="qwen_3_4b.safetensors"),
            "transformer": Names(naming="original", file="z_image.safetensors"),
            "vae": Names(naming="original", file="ae.safetensors"),
        },
        types=(*FLOATS, FP8),
        ends=".safetensors",
        folder=True,
    ),
    "all-in-one": Layout(
        names={
            "text_encoder": Names(
                naming="diffusers",
                prefix="text_encoders.qwen3_4b.transformer.model.",
                head="text_encoders.qwen3_4b.transformer.lm_head.weight",
            ),
            "transformer": Names(naming="original", prefix="model.diffusion_model."),
            "vae": Names(naming="original", prefix="vae."),
        },
        types=(*FLOATS, FP8),
        ends=".safetensors",
    ),
    "gguf": Layout(
        names={"text_encoder": Names(naming="original", head="output.weight"), "transformer": Names(naming="original")},
        types=(*FLOATS, *BLOCKS),
        ends=".gguf",
    ),
}
"""Name of a layout -> what it is."""

_REFINERS = r"noise_refiner|context_refiner"
_BLOCKS = rf"(?:layers|{_REFINERS})\.\d+\."
_MATRICES: Mapping[str, str] = {
    "transformer": _BLOCKS + r"(?:attention\.(?:qkv|out)|feed_forward\.w[123])\.weight",
    "text_encoder": r"layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight",
}
_MATRICES_OF_GGUF: Mapping[str, str] = {
    "transformer": _BLOCKS + r"(?:attention\.(?:qkv|out)|feed_forward\.w[123]|adaLN_modulation\.0)\.weight",
    "text_encoder": r"(?:token_embd|output|blk\.\d+\.(?:attn_(?:[qkv]|output)|ffn_(?:gate|up|down)))\.weight",
}
"""Component -> the matrices that are quantized, in a layout's own names behind its prefix."""


@dataclass(frozen=True)
class Storing:
    """How the tensors of a component are stored.

    Attributes:
        component: The component.
        layout: Name of the layout.
        type: Of `TYPES`; None keeps every tensor as it was.
        keep_refiners: Whether the two refiners are not quantized either.
    """

    component: str
    layout: str
    type: str | None
    keep_refiners: bool = False

    def items(self, entry: Entry) -> list[Item]:
        """What stands in the file for a tensor."""
        if self.type == FP8:
            return _scaled(entry) if self._quantizes(entry, _MATRICES) else [_plain(entry, "bfloat16")]
        if (blocks := BLOCKS.get(self.type or "")) is not None:
            if self._quantizes(entry, _MATRICES_OF_GGUF) and blocks.fits(entry.shape):
                return [Plain(entry.name, entry.shape, entry, blocks)]
            return [_plain(entry, "float32")]
        small = len(entry.shape) < 2 or prod(entry.shape) <= _SMALL
        return [_plain(entry, "float32" if self.layout == "gguf" and small else self.type or entry.own)]

    def does_not_fit(self, entry: Entry) -> bool:
        """Whether a tensor that should be quantized cannot be, for its rows are no whole blocks."""
        blocks = BLOCKS.get(self.type or "")
        return blocks is not None and self._quantizes(entry, _MATRICES_OF_GGUF) and not blocks.fits(entry.shape)

    def _quantizes(self, entry: Entry, matrices: Mapping[str, str]) -> bool:
        name = entry.name.removeprefix(LAYOUTS[self.layout].names[self.component].prefix)
        if self.keep_refiners and self.component == "transformer" and re.match(_REFINERS, name):
            return False
        pattern = matrices.get(self.component)
        return pattern is not None and re.fullmatch(pattern, name) is not None and prod(entry.shape) > _SMALL


def _plain(entry: Entry, name: str) -> Item:
    return Plain(entry.name, entry.shape, entry, FLOATS[name])


def _scaled(entry: Entry) -> list[Item]:
    layer = entry.name.removesuffix(".weight")
    return [
        Scaled(entry.name, entry.shape, entry),
        Scale(f"{layer}.weight_scale", (), entry),
        Json.of(f"{layer}.comfy_quant", {"format": "float8_e4m3fn"}),
    ]


def usual_components(layout: str, there: frozenset[str]) -> tuple[str, ...]:
    """The components that are written where none are named: all that are there, for GGUF the transformer alone."""
    wanted = ("transformer",) if layout == "gguf" and "transformer" in there else COMPONENTS
    return tuple(name for name in wanted if name in there)
