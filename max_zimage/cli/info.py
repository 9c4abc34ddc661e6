"""`max-zimage info`: versions, devices, a checkpoint and the memory it needs; its weights are read only if asked."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from max.driver import Device

from max_zimage import embedded
from max_zimage.checkpoint.weight_check import Damage, check_weights
from max_zimage.cli.console import display
from max_zimage.cli.errors import checking, quiet_libraries
from max_zimage.cli.info_devices import devices
from max_zimage.cli.info_memory import memory_facts, placement_facts, usual_size
from max_zimage.cli.info_model import model_facts
from max_zimage.cli.info_text import print_facts
from max_zimage.cli.options import model_path
from max_zimage.cli.placement_flags import placement_options
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.progress import shown_by
from max_zimage.request.templates import Templates
from max_zimage.version import __version__


def info(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code: 1 if weights were checked and some are no numbers to draw with, or else 0.

    Raises:
        BadInput: If the model, the device or a size does not do.
    """
    if arguments.templates:
        return _list_templates(arguments.templates_dir, as_json=arguments.json)
    with quiet_libraries(arguments.debug), checking():
        prepared = ZImagePipeline.prepare(
            model_path(arguments.model),
            device=arguments.device,
            dtype=arguments.dtype or "auto",
            weight_path=arguments.weight_path,
            quantize=arguments.quantize,
            attention_backend=arguments.attention_backend,
            templates_dir=arguments.templates_dir,
            config=arguments.configuration,
            **placement_options(arguments),
        )
        facts = {
            "versions": versions(),
            "devices": devices(),
            "model": model_facts(arguments.model or embedded.NAME, prepared),
            "memory": (memory := memory_facts(prepared, arguments.height, arguments.width)),
            "placement": placement_facts(prepared, usual_size(prepared, memory["height"], memory["width"])),
        }
    damaged = _check(prepared, facts, quiet=arguments.json) if arguments.check_weights else ()
    if arguments.json:
        print(json.dumps(facts))
    else:
        print_facts(facts)
    for each in damaged:
        print(f"max-zimage: error: {each}", file=sys.stderr)
    return 1 if damaged else 0


def _list_templates(folder: str | None, *, as_json: bool) -> int:
    with checking():
        found = Templates(None if folder is None else Path(folder)).all.values()
    if as_json:
        print(json.dumps({"templates": [dataclasses.asdict(template) for template in found]}))
        return 0
    for template in sorted(found, key=lambda each: (each.category, each.name)):
        print(f"{template.category or '-':14} {template.name:22} {template.description}")
    return 0


def _check(prepared: CheckedModel, facts: dict[str, Any], *, quiet: bool) -> tuple[Damage, ...]:
    """Read all weights, and say so in the facts."""
    with shown_by(display(quiet=quiet)):
        found = check_weights(prepared.sources.plans, prepared.sources.dtypes)
    facts["weights"] = {
        "tensors": found.tensors,
        "numbers": found.numbers,
        "damaged": [each.to_dict() for each in found.damaged],
    }
    return found.damaged


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"max_zimage": __version__, "max": version("modular"), "python": platform.python_version()}


def conditions(model: str, component: str | None, device: Device, dtype: str) -> dict[str, Any]:
    """What a measurement was made of and on."""
    return {
        "model": model,
        "component": component,
        "device": device.label + ("" if device.is_host else f":{device.id}"),
        "dtype": dtype,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }
