"""A checkpoint as a configuration file has it: what it is loaded with, and what its requests get that say nothing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from max_zimage.checkpoint.config import USUAL_SIDE
from max_zimage.enhancer.settings import EnhancerSettings
from max_zimage.errors import RequestError, Wording
from max_zimage.request.configuration.configuration import Configuration, read_configuration
from max_zimage.request.configuration.profiles import ConfigurationError
from max_zimage.request.configuration.values import dtype_of, giving_way
from max_zimage.request.configured import OF_CHECKPOINT
from max_zimage.request.feature_settings import SETTINGS
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.request import GenerationRequest
from max_zimage.request.templates import Templates

Config = Configuration | str | os.PathLike[str] | None
"""A configuration, or the file that one is read from."""

START = ("device", "dtype", "weight_path", "templates_dir", "quantize", "attention_backend", "embedding_cache_bytes")
"""Arguments of loading that a text encoder alone has."""
ARGUMENTS = (*START[3:], "loras", "enhancer")
"""Those of a pipeline, beside the places of its components, that are None where nobody says them."""
TEXT_FIELDS = ("template", *SETTINGS)
"""Fields that say how prompts are encoded."""

_LEFT: dict[str, tuple[object, ...]] = {
    "device": ("auto", None), "dtype": ("auto", None), "weight_path": ((), [], None), "templates_dir": (None,),
    "quantize": (None,), "attention_backend": (None,), "embedding_cache_bytes": (None,), "loras": ((), [], None),
    "step_cache": (None,),
    "placement": ("auto", None), "max_memory": (None,), "cpu_offload": (False, None),
    "encoder_device": (None,), "dit_device": (None,), "vae_device": (None,), "enhancer": (None,),
    "devices": (None,), "split": ("auto", None),
}  # fmt: skip
"""Arguments of loading -> values by which they are left to what is configured."""


_ONE_SETTING = ("placement", "cpu_offload")


def configuration_of(config: Config, profile: str | None) -> Configuration | None:
    """The configuration that arguments of `from_pretrained` name; None if they name none.

    Raises:
        ConfigurationError: With all that is wrong with the file.
        TypeError: If a profile is named of a configuration that is read already.
    """
    if not isinstance(config, Configuration):
        return None if config is None and profile is None else read_configuration(config, profile)
    if profile is not None:
        raise TypeError("a configuration that was read has its profile; leave profile out")
    return config


def with_torch_dtype(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of loading with `dtype` under its one name.

    Raises:
        ValueError: If it is given under both, or is none that anything is computed in.
    """
    found = dict(options)
    named = found.pop("torch_dtype", None)
    if named is None:
        return found
    if found["dtype"] != "auto":
        raise ValueError(f"dtype and torch_dtype are one argument, got {found['dtype']} and {named}; leave one out")
    try:
        return found | {"dtype": dtype_of(named)}
    except ValueError as error:
        raise ValueError(f"torch_dtype {error}") from error


def is_left(name: str, value: object) -> bool:
    """Whether an argument of loading has a value by which it is left to what is configured."""
    return any(value is each or value == each for each in _LEFT[name])


def with_options(model: Any, options: Mapping[str, Any], configuration: Configuration) -> tuple[Any, dict[str, Any]]:
    """The model and the arguments of loading, with what is configured of those that are left at their defaults.

    Args:
        model: None leaves it to the configuration.
        options: Arguments of `check_model` or of `ZImageTextEncoder.prepare`.
        configuration: What is configured.

    Raises:
        EnhancerError: If what is configured of an enhancer is out of range.
    """
    start = configuration.start | {name: value for name, value in configuration.fields.items() if name == "step_cache"}
    found = dict(options)
    free = [name for name in _LEFT if name in found and is_left(name, found[name])]
    if not {*_ONE_SETTING} & found.keys() <= {*free}:  # two ways to say one thing, of which an argument comes first
        free = [name for name in free if name not in _ONE_SETTING]
    said = {name: value for name, value in found.items() if name in _LEFT and not is_left(name, value)}
    free = [name for name in free if name not in giving_way(said)]  # likewise, one device or several
    found |= {name: start[name] for name in free if name in start}
    if "enhancer" in free and "enhancer" in start:  # checked now, though it may never be asked
        found["enhancer"] = EnhancerSettings.of(start["enhancer"])
    if "cpu_offload" in free and "cpu_offload" in start:
        found["is_offload_configured"] = True
    return start.get("model") if model is None else model, found


def configured_guidance(configuration: Configuration) -> float | None:
    """How far guidance goes where a request says nothing, at most; None where that is left to the checkpoint."""
    given = configuration.fields.get("guidance_scale")
    if given is None:
        return None
    return float(max(given) if isinstance(given, (list, tuple)) else given)


def configured_defaults(defaults: RequestDefaults, limits: Limits, configuration: Configuration) -> dict[str, Any]:
    """Attributes of `RequestDefaults` that are configured, tried with a request that says nothing else.

    Raises:
        ConfigurationError: If such a request cannot be drawn with this checkpoint.
    """
    fields = {name: value for name, value in configuration.fields.items() if name != "step_cache"}
    own = {name: fields.pop(name) for name in OF_CHECKPOINT if not isinstance(fields.get(name), (list, type(None)))}
    changed = own | {"configured": fields}
    names = {name: setting.name for name, setting in configuration.settled.fields.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            GenerationRequest.create(limits=limits, defaults=replace(defaults, **changed), prompt="")
    except RequestError as error:
        raise ConfigurationError(error.said(Wording(names))) from error
    return changed


def encoder_defaults(templates_dir: str | os.PathLike[str] | None) -> RequestDefaults:
    """Those of a text encoder alone: nothing is drawn, only the templates are asked for.

    Raises:
        TemplateError: If a template cannot be read.
    """
    templates = Templates(None if templates_dir is None else Path(templates_dir))
    if templates_dir is not None:
        _ = templates.all
    return RequestDefaults(
        height=USUAL_SIDE, width=USUAL_SIDE, num_inference_steps=8, guidance_scale=0.0, templates=templates
    )
