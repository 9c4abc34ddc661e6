"""What other tools say that a picture was drawn with, as far as a request can say it.

Read is the text of stable-diffusion-webui, which Forge, SD.Next and stable-diffusion.cpp write too. Another tool draws
other noise from a seed and rounds elsewhere: the picture will show the same, and will not be the same. What has no
counterpart is named; a sampler or a sigma shape without one is an error: something else would be drawn in its place.

Reference: `reference/scale-and-ux.md` section 9; stable-diffusion-webui modules/processing.py, create_infotext;
stable-diffusion.cpp examples/common, get_image_params.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from max_zimage.errors import RequestError
from max_zimage.images.infotext import Infotext, read_infotext
from max_zimage.images.texts import called, embedded_text
from max_zimage.request.metadata import GenerationParameters, is_own, parameters_of_text
from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES
from max_zimage.sampling.other_names import AUTOMATIC, guidance_of, sampler_of, shape_of
from max_zimage.version import PROGRAM

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})", re.ASCII)
_LORA = re.compile(r"<lora:([^:<>]+)(?::(-?[0-9.]+))?(?::[^<>]*)?>")
_EMPHASIS = re.compile(r"\([^()]*:[0-9.]+\)")
_SAID_ELSEWHERE = frozenset({"Sampler", "Schedule type", "Version", "Variation seed strength", "Sigmas", "Lora hashes"})
"""Read with another, or of no consequence."""


@dataclass(frozen=True)
class OtherLora:
    """An adapter that another tool's prompt names.

    Attributes:
        name: Its file's, without the ending.
        scale: Times what it adds to the weights.
    """

    name: str
    scale: float


@dataclass
class OtherParameters:
    """What a picture of another tool says.

    Attributes:
        values: Arguments of `GenerationRequest.create`.
        loras: Adapters, whose files are to be found.
        is_from_image: Whether it began with an image.
        notes: What is not carried over, in sentences.
    """

    values: dict[str, Any] = field(default_factory=dict)
    loras: tuple[OtherLora, ...] = ()
    is_from_image: bool = False
    notes: tuple[str, ...] = ()


def read_any(source: Path | bytes, given: Collection[str] = ()) -> GenerationParameters | OtherParameters:
    """Return what a picture was drawn with, by this program or by another.

    Args:
        source: The picture's file, or what is in that.
        given: Arguments that take the place of what it says: what stands there need not be understood.

    Raises:
        ImageFileError: If there is no such file, it is no picture, is damaged, or holds no parameters that are read.
        RequestError: If something in them has no counterpart that the picture would need; all that is so is said
            together.
    """
    text = embedded_text(source)
    if is_own(text) or (found := read_infotext(text)) is None:
        return parameters_of_text(source, text)
    return _read(called(source), found, frozenset(given))


def _read(path: str, text: Infotext, given: frozenset[str]) -> OtherParameters:
    values: dict[str, Any] = {}
    problems: list[str] = []
    pairs = dict(text.pairs)
    left = [name for name in pairs if name not in _READERS and name not in _SAID_ELSEWHERE]
    for name, (arguments, read) in _READERS.items():
        if name not in pairs or given.issuperset(arguments):
            continue
        try:
            values |= read(pairs[name])
        except ValueError as error:
            problems.append(f"{name} is {pairs[name]!r}, {error}")
    try:
        values |= _way(pairs, given)
    except ValueError as error:
        problems.append(str(error))
    is_hires = any(name.startswith("Hires") for name in pairs)
    if is_hires:  # of its second pass
        values.pop("strength", None)
    is_from_image = "Denoising strength" in pairs and not is_hires
    if is_from_image and "image" not in given:
        problems.append("it was drawn from an image; name that one's file with --image")
    try:
        (prompt, loras), (negative, others) = map(_without_tags, (text.prompt, text.negative_prompt))
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise RequestError(f"{path}: the parameters of another tool cannot be used: {'; '.join(problems)}")
    values |= {"prompt": prompt} | ({"negative_prompt": negative} if negative else {})
    notes = _notes(path, text, left)
    if negative and values.get("guidance_scale") == 0 and given.isdisjoint({"guidance_scale", "nag_scale"}):
        del values["negative_prompt"]
        notes += (f"{path}: CFG scale 1 is no guidance, and its negative prompt is left out, which had no effect",)
    return OtherParameters(values=values, loras=loras + others, is_from_image=is_from_image, notes=notes)


def _way(pairs: Mapping[str, str], given: frozenset[str]) -> dict[str, Any]:
    """Sampler and sigma shape, which older texts have in one word."""
    values: dict[str, Any] = {}
    problems = []
    shape = pairs.get("Schedule type")
    if "Sampler" in pairs:
        sampler, word = sampler_of(pairs["Sampler"])
        shape = shape or word
        if sampler is not None:
            values["sampler"] = sampler
        elif "sampler" not in given:
            known = ", ".join(SAMPLERS)
            problems.append(f"Sampler {pairs['Sampler']!r} has no counterpart; choose one with --sampler from {known}")
    if shape is not None and shape.lower() != AUTOMATIC:
        found = shape_of(shape)
        if found is not None:
            values["sigma_shape"] = found
        elif "sigma_shape" not in given:
            known = ", ".join(SIGMA_SHAPES)
            problems.append(f"Schedule type {shape!r} has no counterpart; choose one with --sigma-shape from {known}")
    if problems:
        raise ValueError("; ".join(problems))
    if "Sigmas" in pairs:
        values["sigmas"] = tuple(_number(each) for each in pairs["Sigmas"].split(","))
    if "Variation seed strength" in pairs:
        values["variation_strength"] = _number(pairs["Variation seed strength"])
    return values


def _notes(path: str, text: Infotext, left: list[str]) -> tuple[str, ...]:
    author = text.pairs.get("Version", "another tool")
    notes = []
    if not author.startswith(PROGRAM):
        notes.append(
            f"{path} is by {author}, which draws other noise from a seed: the picture will show the same, and not be "
            "the same"
        )
    if left:
        notes.append(
            f"{path}: not carried over: {', '.join(f'{name} {text.pairs[name]}' for name in left)}; the model is that "
            "of --model"
        )
    if _EMPHASIS.search(f"{text.prompt} {text.negative_prompt}"):
        notes.append(f"{path}: emphasis such as (word:1.2) has no meaning here, and is read as the text that it is")
    return tuple(notes)


def _without_tags(text: str) -> tuple[str, tuple[OtherLora, ...]]:
    """A prompt without the adapters that it names.

    Raises:
        ValueError: If one's weight is no number.
    """
    loras = tuple(OtherLora(name, _weight(name, scale) if scale else 1.0) for name, scale in _LORA.findall(text))
    return (_LORA.sub("", text).strip() if loras else text), loras


def _weight(name: str, scale: str) -> float:
    try:
        return _number(scale)
    except ValueError as error:
        raise ValueError(f"the weight of <lora:{name}> is {scale!r}, {error}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("which is no number") from None


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,20}", text.strip(), re.ASCII):
        raise ValueError("which is no whole number of at least 0")
    return int(text)


def _guidance(text: str) -> dict[str, Any]:
    scale = _number(text)
    if not scale >= 1:
        raise ValueError("which is below 1; choose one with --guidance, which is CFG scale - 1")
    return {"guidance_scale": guidance_of(scale)}


def _size(text: str) -> dict[str, Any]:
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError("which is no size")
    return {"width": int(found[1]), "height": int(found[2])}


def _noise(text: str) -> dict[str, Any]:
    return {"noise": "torch"} if text.strip().lower() == "cpu" else {}


_READERS: Mapping[str, tuple[tuple[str, ...], Callable[[str], dict[str, Any]]]] = {
    "Steps": (("num_inference_steps",), lambda text: {"num_inference_steps": _whole(text)}),
    "CFG scale": (("guidance_scale",), _guidance),
    "Seed": (("seed",), lambda text: {"seed": _whole(text)}),
    "Size": (("width", "height"), _size),
    "Shift": (("shift",), lambda text: {"shift": _number(text)}),
    "RNG": (("noise",), _noise),
    "Variation seed": (("variation_seed",), lambda text: {"variation_seed": _whole(text)}),
    "Denoising strength": (("strength",), lambda text: {"strength": _number(text)}),
}
"""Name -> the arguments that it stands for, and what reads it."""
