"""The text in which stable-diffusion-webui keeps what a picture was drawn with, and which other tools read.

The prompt, a line that begins with "Negative prompt: ", and a line of "Name: value" pairs, of which values with a
comma, a colon or a line break are quoted as JSON. The text says what the tools of the field have a name for; a prompt
with a line that looks like the one behind it cannot be told from it, which is why the program's own JSON stands beside.

Reference: `reference/scale-and-ux.md` section 9; stable-diffusion-webui modules/infotext_utils.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

from max_zimage.images.hires import first_steps, hires_of
from max_zimage.sampling.other_names import SAMPLER_LABELS, SHAPE_LABELS, cfg_scale_of
from max_zimage.version import PROGRAM

NEGATIVE = "Negative prompt:"
_FEWEST_PAIRS = 3
_HASH_DIGITS = 10
"""Of a file's SHA-256 that stand for it: what CivitAI calls AutoV2."""
_PAIR = re.compile(r'\s*([^\s,:"][^,:"]*):[ \t]*("(?:[^"\\]|\\.)*"|\[[^][]*\]|\{[^{}]*\}|[^,]*)(?:,|$)')
"""A name and its value, at the place where one may begin. No part of a line is looked at twice."""
_LONGEST = 1 << 16
"""Characters of a line of pairs: other tools' have a few thousand."""
_NEEDS_QUOTES = frozenset(',:\n"')


@dataclass(frozen=True, kw_only=True)
class Infotext:
    """What such a text says.

    Attributes:
        prompt: Lines without the spaces around them.
        negative_prompt: The same; empty for none.
        pairs: Name -> value of the last line, without quotes.
    """

    prompt: str
    negative_prompt: str
    pairs: Mapping[str, str]


def write_infotext(values: Mapping[str, Any], more: Mapping[str, str] = MappingProxyType({})) -> str:
    """Say what a picture was drawn with.

    Args:
        values: As the JSON of `max_zimage.request.metadata.GenerationParameters` has them.
        more: Other names of the last line, and their values.
    """
    scales = "".join(f" <lora:{_stem(each['name'])}:{_number(each['scale'])}>" for each in values["loras"])
    lines = [values["prompt"] + scales]
    if values["negative_prompt"]:
        lines.append(f"{NEGATIVE} {values['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in (_pairs(values) | dict(more)).items()))
    # Where text ends at a zero byte, as in a PNG, the rest would be lost.
    return "\n".join(lines).replace("\0", "\N{SYMBOL FOR NULL}")


def read_infotext(text: str) -> Infotext | None:
    """Read what `write_infotext` or another tool wrote; None if it is no such text."""
    lines = text.strip().split("\n")
    while lines:
        pairs = _pairs_of(lines.pop())
        if _is_last(pairs):
            break
    else:
        return None
    texts = [line.strip() for line in lines]
    begin = next((at for at, line in enumerate(texts) if line.startswith(NEGATIVE)), len(texts))
    negative = "\n".join(texts[begin:]).removeprefix(NEGATIVE).strip()
    return Infotext(prompt="\n".join(texts[:begin]), negative_prompt=negative, pairs=pairs)


def _pairs(values: Mapping[str, Any]) -> dict[str, str]:
    """The last line's names and values."""
    hires = hires_of(values)
    width, height = (values["width"], values["height"]) if hires is None else hires.size
    strength = values["strength"] if hires is None else hires.strength
    pairs: dict[str, str | None] = {
        "Steps": str(first_steps(values)),
        "Sampler": SAMPLER_LABELS[values["sampler"]],
        "Schedule type": SHAPE_LABELS[values["sigma_shape"]] if values["sigmas"] is None else None,
        "CFG scale": _number(cfg_scale_of(values["guidance_scale"])),
        "Seed": str(values["seed"]),
        "Size": f"{width}x{height}",
        "Model": PurePath(values["model"]).name or values["model"],
        "Variation seed": None if values["variation_seed"] is None else str(values["variation_seed"]),
        "Variation seed strength": None if values["variation_seed"] is None else _number(values["variation_strength"]),
        "Denoising strength": None if strength is None else _number(strength),
        **({} if hires is None else hires.pairs()),
        "Shift": None if values["shift"] is None else _number(values["shift"]),
        "RNG": "CPU" if values["noise"] == "torch" else None,
        "Sigmas": None if values["sigmas"] is None else ", ".join(map(_number, values["sigmas"])),
        "Lora hashes": _hashes(values["loras"]) or None,
        "Version": f"{PROGRAM} {values['version']}",
    }
    return {name: value for name, value in pairs.items() if value is not None}


def _hashes(loras: list[dict[str, Any]]) -> str:
    """Of adapters that are one file: what stands for PEFT's folders is no digest of a file."""
    files = [each for each in loras if PurePath(each["name"]).suffix]
    return ", ".join(f"{_stem(each['name'])}: {each['digest'].partition(':')[2][:_HASH_DIGITS]}" for each in files)


def _stem(name: str) -> str:
    return PurePath(name).stem


def _number(value: float) -> str:
    return f"{value:.10g}"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if _NEEDS_QUOTES & set(value) else value


def _is_last(pairs: Mapping[str, str]) -> bool:
    return len(pairs) >= _FEWEST_PAIRS and not {"Steps", "Sampler", "Seed"}.isdisjoint(pairs)


def _pairs_of(line: str) -> dict[str, str]:
    """Names and values of a line; of the same name the last one counts."""
    pairs: dict[str, str] = {}
    place = 0
    while len(line) <= _LONGEST and 0 <= place < len(line):
        found = _PAIR.match(line, place)
        if found:
            pairs[found[1].strip()] = _unquoted(found[2].strip())
            place = found.end()
        else:  # no pair: the next one may begin behind a comma
            place = line.find(",", place) + 1 or len(line)
    return pairs


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        with suppress(ValueError):
            found = str(json.loads(value))
            found.encode()  # half of a letter, which JSON can name, is none
            return found
    return value
