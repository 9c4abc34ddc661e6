"""`max-zimage info`: versions, devices, a checkpoint and the memory it needs; its weights are read only if asked."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from max.driver import Accelerator, Device, accelerator_api, accelerator_architecture_name, accelerator_count
from rich import box
from rich.table import Table

from max_zimage import embedded
from max_zimage.checkpoint.plan import LoadPlan
from max_zimage.checkpoint.weight_check import Damage, check_weights
from max_zimage.cli.console import display, table_console
from max_zimage.cli.errors import checking, quiet_libraries
from max_zimage.cli.info_memory import memory_facts, placement_facts
from max_zimage.cli.options import model_path
from max_zimage.cli.placement_flags import placement_options
from max_zimage.device.memory import available_memory
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.progress import shown_by
from max_zimage.request.limits import Limits, RequestDefaults
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
            "placement": placement_facts(prepared, memory["height"], memory["width"]),
        }
    damaged = _check(prepared, facts, quiet=arguments.json) if arguments.check_weights else ()
    if arguments.json:
        print(json.dumps(facts))
    else:
        _print(facts)
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


def devices() -> list[dict[str, Any]]:
    """The CPU and every accelerator, with the bytes that are free."""
    found: list[dict[str, Any]] = [{"name": "cpu", "kind": platform.machine(), "free_bytes": available_memory()}]
    for number in range(accelerator_count()):
        free = Accelerator(number).stats.get("free_memory")
        kind = f"{accelerator_api()} {accelerator_architecture_name()}"
        found.append({"name": f"gpu:{number}", "kind": kind, "free_bytes": free})
    return found


def model_facts(name: str, prepared: CheckedModel) -> dict[str, Any]:
    """What a checkpoint is."""
    sources = prepared.sources
    return {
        "name": name,
        "components": [component_facts(sources.plans[part], sources.dtypes[part]) for part in sources.plans],
        "shift": sources.specs.schedule.shift,
        "defaults": _public(sources.defaults),
        "limits": _public(sources.limits),
    }


def component_facts(plan: LoadPlan, dtype: str) -> dict[str, Any]:
    """What one component is, and the bytes its weights will take."""
    count = sum(prod(recipe.shape) for recipe in plan.recipes)
    return {
        "name": plan.component,
        "format": plan.format,
        "files": [str(file) for file in plan.files],
        "parameters": count,
        "dtype_in_files": plan.dtype,
        "storage": plan.storage,
        "dtype": dtype,
        "kept_as": plan.kept_as,
        "bytes": plan.nbytes("float32" if dtype == "float32" else "bfloat16"),
    }


def _public(record: Limits | RequestDefaults) -> dict[str, int | float | str | None]:
    """What of it is a number, a word or nothing; templates and adapters are no facts about a checkpoint."""
    return {name: value for name, value in vars(record).items() if isinstance(value, (int, float, str, type(None)))}


def _print(facts: dict[str, Any]) -> None:
    console = table_console()
    model, memory = facts["model"], facts["memory"]
    console.print("  ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    for device in facts["devices"]:
        console.print(f"{device['name']}: {device['kind']}, {_size(device['free_bytes'])} free")
    table = Table(title=model["name"], title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("component", "parameters", "in files", "in memory", "size", "files", "format"):
        numeric = heading in ("parameters", "size", "files")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for part in model["components"]:
        table.add_row(
            part["name"],
            f"{part['parameters']:,}",
            _shares(part["storage"]),
            " and ".join(filter(None, (part["kept_as"], part["dtype"]))),
            _size(part["bytes"]),
            str(len(part["files"])),
            part["format"],
        )
    console.print(table)
    defaults, limits = model["defaults"], model["limits"]
    console.print(
        f"drawn unless asked otherwise: {defaults['width']}x{defaults['height']} pixels, "
        f"{defaults['num_inference_steps']} steps, guidance {defaults['guidance_scale']:g}, shift {model['shift']:g}"
    )
    console.print(
        f"at most: {limits['max_width']}x{limits['max_height']} pixels, {limits['max_tokens']} tokens, "
        f"{limits['max_steps']} steps"
    )
    console.print(
        f"memory on {memory['device']}: {_size(memory['weights_bytes'])} of weights and about "
        f"{_size(memory['activations_bytes_about'])} more for {memory['width']}x{memory['height']} pixels "
        f"{'with' if memory['guided'] else 'without'} guidance; {_size(memory['available_bytes'])} are free: "
        + ("it fits" if memory["fits"] else "it does not fit")
    )
    console.print(f"placement: {facts['placement']['words']}")
    large = memory["large_decode"]
    whole, blend, exact, kept = (_size(large[name]) for name in ("off", "blend", "exact", "exact_on_host"))
    console.print(
        f"decoding {large['width']}x{large['height']} pixels takes about {whole} as a whole, {blend} with --tiled-vae, "
        f"{exact} with --tiled-vae exact and {kept} of the host's memory"
    )
    if weights := facts.get("weights"):
        bad = len(weights["damaged"])
        verdict = f"not so in {bad} tensor{'s' if bad > 1 else ''}" if bad else "so in all of them"
        console.print(f"{weights['numbers']:,} numbers of {weights['tensors']} tensors should be finite: {verdict}")


def _shares(storage: Mapping[str, int]) -> str:
    """How many percent of the tensors are stored as what, or what all are."""
    total = sum(storage.values())
    if len(storage) == 1:
        return next(iter(storage))
    return ", ".join(f"{100 * count / total:.0f}% {kind}" for kind, count in storage.items())


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


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
