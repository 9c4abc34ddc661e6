"""How a text is written: the numbers of a request over those of the checkpoint over the model's own.

Reference: transformers models/diffusion_gemma/generation_diffusion_gemma.py, DiffusionGemmaGenerationConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

from max_zimage.diffusion_gemma.sampler import temperature
from max_zimage.errors import CheckpointError, RequestError
from max_zimage.request.checks import SMALLEST, Problems, number, ranged, whole_number
from max_zimage.strict_json import is_there, plain, read_object, shown

FILE = "generation_config.json"
MOST_TOKENS = 1_000_000
MOST_STEPS = 100_000

_SAMPLER = "EntropyBoundSamplerConfig"
_INERT = frozenset(
    {"_from_model_config", "bos_token_id", "cache_config", "cache_implementation", "max_length", "transformers_version"}
)
"""Keys that say nothing of what is written: a cache's kind, versions, and a length that asks for nothing if tokens are
asked for."""
_OF_OTHERS = (
    "do_sample",
    "min_p",
    "num_beams",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The numbers that decide how a text is written.

    Attributes:
        max_new_tokens: Most tokens of a text. Whole canvases are computed, and what is beyond is cut off.
        num_denoising_steps: Most steps of a canvas.
        entropy_bound: Above 0, in nats: how much uncertainty the tokens that are accepted together may have.
        t_max: Temperature of the first step, above `t_min`.
        t_min: Temperature that the steps go down to, at least 0; that of the last step is above 0 in float32.
        confidence_threshold: Above 0, in nats: a canvas is done when the mean entropy is below it and it is stable.
        stability_threshold: Steps for which the likeliest tokens must have stayed the same; 0 asks for none.
    """

    max_new_tokens: int = 256
    num_denoising_steps: int = 48
    entropy_bound: float = 0.1
    t_max: float = 0.8
    t_min: float = 0.4
    confidence_threshold: float = 0.005
    stability_threshold: int = 1

    def asked(self, **given: object) -> Self:
        """These settings with those of a request that are not None.

        Raises:
            RequestError: With every number that is out of range.
            TypeError: If there is no such number.
        """
        known = [field.name for field in fields(self)]
        if others := sorted(given.keys() - set(known)):
            raise TypeError(f"no number of a text is called {', '.join(others)}; those are {', '.join(known)}")
        problems, values = Problems(), {name: value for name, value in given.items() if value is not None}
        counts = {"max_new_tokens": (1, MOST_TOKENS), "num_denoising_steps": (1, MOST_STEPS)}
        counts["stability_threshold"] = (0, MOST_STEPS)
        checked: dict[str, object] = {}
        for name, value in values.items():
            before = getattr(self, name)
            if name in counts:
                low, high = counts[name]
                checked[name] = problems.check(before, whole_number, name, value, low=low, high=high)
            elif name == "t_max":
                checked[name] = problems.check(before, ranged, name, value, above=True, float32=True)
            elif name == "t_min":
                checked[name] = problems.check(before, ranged, name, value, float32=True)
            else:
                checked[name] = problems.check(before, number, name, value, above=True)
        found = replace(self, **checked)  # type: ignore[arg-type]  # each was checked as what it is
        if not {"t_max", "t_min", "num_denoising_steps"} & {problem.field for problem in problems.found}:
            problems.check(None, found.check_temperatures)
        problems.raise_if_any()
        return found

    def check_temperatures(self) -> None:
        """Check that temperatures go down, and that none is so low that float32 takes it for 0.

        Raises:
            RequestError: If they do not, or the last one is.
        """
        if self.t_max <= self.t_min:
            message = "{field} must be above {name[t_min]}, got {high:g} and {low:g}; temperatures go down"
            raise RequestError.of("t_max", message, high=self.t_max, low=self.t_min)
        steps = self.num_denoising_steps
        last = temperature(steps - 1, steps, self.t_max, self.t_min)
        if last < SMALLEST:
            raise RequestError.of(
                "t_max",
                "{field} {high:g} and {name[t_min]} {low:g} make {last:.3g} of the last step's temperature, and "
                "float32, in which it is taken, has none below {least:.3g}; raise one of them",
                high=self.t_max,
                low=self.t_min,
                last=last,
                least=SMALLEST,
            )


@dataclass(frozen=True, kw_only=True)
class TextDefaults:
    """What a checkpoint says about writing.

    Attributes:
        settings: Where a request says nothing.
        ends: Tokens that end a text; at least one.
        pad: Stands behind an end.
    """

    settings: TextSettings
    ends: tuple[int, ...]
    pad: int


def read_defaults(directory: Path, vocab_size: int) -> TextDefaults:
    """Read `generation_config.json`, and what it leaves out from `config.json`.

    Args:
        directory: The checkpoint.
        vocab_size: Tokens there are.

    Raises:
        CheckpointError: If a value is none that can be taken, with its name.
    """
    file = directory / FILE
    content = read_object(file) if is_there(file) else {}
    config = read_object(directory / "config.json")
    text = config.get("text_config")
    fallback = text if isinstance(text, Mapping) else {}
    _refuse_others(file, content)
    given = {name: content.get(name) for name in (field.name for field in fields(TextSettings))}
    given["num_denoising_steps"] = content.get("max_denoising_steps")
    given["entropy_bound"] = _entropy_bound(file, content.get("sampler_config"))
    try:
        settings = TextSettings().asked(**given)
    except RequestError as error:
        raise CheckpointError(f"{file}: {error}; correct it, or fetch it again") from error
    ends, pads = (
        _tokens(file, name, _said(name, content, fallback, own), vocab_size)
        for name, own in (("eos_token_id", 1), ("pad_token_id", 0))
    )
    return TextDefaults(settings=settings, ends=ends, pad=pads[0])


def _said(name: str, content: Mapping[str, object], fallback: Mapping[str, object], own: int) -> object:
    """The first value that somebody says; null says nothing, as with all other keys."""
    return next((value for value in (content.get(name), fallback.get(name)) if value is not None), own)


def _refuse_others(file: Path, content: Mapping[str, object]) -> None:
    known = {field.name for field in fields(TextSettings)} - {"num_denoising_steps", "entropy_bound"}
    known |= {"max_denoising_steps", "sampler_config", "eos_token_id", "pad_token_id"} | _INERT
    for name, value in content.items():
        if name in known or value is None:
            continue
        why = "is of models that write token by token" if name in _OF_OTHERS else "is not known"
        raise CheckpointError(
            f"{file}: {plain(name)} {why}, and nothing here would heed it; DiffusionGemma's keys are "
            f"{', '.join(sorted(known - _INERT))}"
        )


def _entropy_bound(file: Path, sampler: object) -> object:
    if sampler is None:
        return None
    if not isinstance(sampler, Mapping) or sampler.get("_cls_name", _SAMPLER) != _SAMPLER:
        raise CheckpointError(
            f"{file}: sampler_config must be an {_SAMPLER}, an object with entropy_bound, got {shown(sampler)}"
        )
    return sampler.get("entropy_bound")


def _tokens(file: Path, name: str, value: object, vocab_size: int) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(type(each) is int and 0 <= each < vocab_size for each in listed):
        raise CheckpointError(
            f"{file}: {name} must be a token from 0 to {vocab_size - 1}, or several, got {shown(value)}; correct it, "
            "or fetch it again"
        )
    return tuple(listed)
