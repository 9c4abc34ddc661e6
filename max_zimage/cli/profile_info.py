"""`max-zimage profile --show-info`: what computes here, with what, and how it is set."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from max.driver import Device
from max.dtype import DType

from max_zimage import embedded
from max_zimage.cli.config import CANONICAL, in_force, values_given, written
from max_zimage.cli.console import table_console
from max_zimage.cli.info import versions
from max_zimage.cli.info_devices import devices
from max_zimage.cli.info_memory import placement_facts
from max_zimage.cli.profile_picture import asked_picture
from max_zimage.graphs.kernel_library import is_nvidia, uses_cpu_kernels
from max_zimage.graphs.model.attention_backends import Backend, available
from max_zimage.pipeline.attention import backend_of
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.placing import Size
from max_zimage.request.configuration.configuration import Configuration, read_configuration
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import format_step_cache

_LIBRARIES = ("modular", "max-core", "mojo", "numpy", "pillow", "transformers", "tokenizers", "safetensors")


WHAT: Mapping[Backend, str] = {
    "max_zimage": "a kernel of this project: norms, RoPE and attention in one pass",
    "max": "MAX's flash attention, behind norms and RoPE",
    "plain": "scores, softmax and weighted sums in float32, with memory for every pair of tokens",
}
"""Attention by name, in words."""


def info_facts(arguments: Any) -> dict[str, Any]:
    """What there is, and what is in force for the picture that the flags ask for; nothing is loaded or compiled.

    Args:
        arguments: Flags of the command.

    Raises:
        ValueError: If there is no such model, or it cannot be run or draw as it is asked to, memory apart.
    """
    prepared, request = asked_picture(arguments)
    device, dtype, specs = prepared.devices[0], prepared.sources.dtypes["transformer"], prepared.sources.specs
    there = available(DType[dtype], device, (specs.text_encoder.head_dim, specs.transformer.head_dim))
    used = backend_of(arguments.attention_backend, specs.transformer, dtype, device) or there[0]
    configuration = read_configuration(arguments.config, arguments.chosen_profile)
    return {
        "platform": {"system": platform.platform(), "machine": platform.machine(), "cores": os.cpu_count()},
        "versions": versions() | {name: found for name in _LIBRARIES if (found := _version(name))},
        "devices": devices(),
        "backends": {
            "attention": {"used": used, "what": WHAT[used]},
            "attention, choice": ", ".join(there),
            "matrix products": _products(device, dtype),
        },
        "configuration": _come_to(prepared, request, configuration) | {"model": arguments.model or embedded.NAME},
        "settings": _settings(configuration, arguments),
        "environment": {name: _shown(name, value) for name, value in sorted(os.environ.items()) if _is_ours(name)},
    }


def _come_to(prepared: CheckedModel, request: GenerationRequest, configuration: Configuration) -> dict[str, Any]:
    """What file, environment and flags come to on this machine."""
    place = placement_facts(prepared, Size.of(request))
    return {
        "file": None if configuration.file is None else str(configuration.file),
        "profile": configuration.profile,
        "device": prepared.devices[0].label,
        "dtype": prepared.sources.dtypes["transformer"],
        "quantize": prepared.sources.quantize or "none",
        "components": place["devices"] if place["fits"] else dict(prepared.wish.devices),
        "placement": place["residency"] if place["fits"] else "none",
        "placement, why": place["words"],
        "max_memory": prepared.wish.max_memory,
        "step_cache": format_step_cache(request.step_cache),
        "embedding_cache": prepared.embedding_cache_bytes,
    }


def _settings(configuration: Configuration, arguments: Any) -> list[dict[str, Any]]:
    """Where each value comes from: of all that a model is loaded with, and of what else is said."""
    always = {*CANONICAL.values(), ("generation", "step_cache")}
    found = in_force(configuration, values_given(arguments))
    return [asdict(each) for each in found if each.origin != "default" or (each.section, each.key) in always]


def print_info(facts: Mapping[str, Any]) -> None:
    """The same, as a person reads it."""
    console = table_console()
    for title, entries in facts.items():
        console.print(title, style="bold")
        lines = list(_lines(title, entries)) or ["nothing is set"]
        for line in lines:
            console.print(f"  {line}", markup=False)


def _lines(title: str, entries: Any) -> Iterator[str]:
    if title == "settings":
        for each in entries:
            place = f"[{each['section']}] {each['key']}" if each["section"] else each["key"]
            yield f"{place}: {written(each['value'])} ({each['origin']})"
    elif isinstance(entries, list):
        for each in entries:
            yield _together(each)
    else:
        for name, value in entries.items():
            if name == "attention":
                yield f"{name}: {value['used']}: {value['what']}"
            else:
                yield f"{name}: {_together(value) if isinstance(value, dict) else written(value)}"


def _together(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in entries.items())


def _products(device: Device, dtype: str) -> str:
    if device.is_host:
        own = uses_cpu_kernels(DType[dtype], device)
        return "kernels of this project, weights packed at load" if own else "MAX's"
    return "cuBLAS" if is_nvidia(device) else "MAX's"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_ours(name: str) -> bool:
    return name.startswith("MAX_ZIMAGE_")


def _shown(name: str, value: str) -> str:
    return "(set)" if "KEY" in name else value
