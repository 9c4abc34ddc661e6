"""Where a model's components would go: on this machine, or on GPUs of other sizes, which need not be there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from math import prod
from typing import Any

from max.driver import CPU
from max.graph import DeviceRef
from rich import box
from rich.table import Table

from max_zimage.cli.compile import PUBLISHED, specs_of
from max_zimage.cli.console import table_console
from max_zimage.cli.errors import checking
from max_zimage.compile.registry import made
from max_zimage.device.dtypes import ModelDtype
from max_zimage.device.memory import NotEnoughMemoryError, available_memory, gib
from max_zimage.device.placement import place
from max_zimage.device.plans import HOST, PLACEMENTS, STAGES, Needs, Wish, usable
from max_zimage.host.sizes import read_size
from max_zimage.pipeline.placing import Size, needs_by_shape

COMMON = ("24GiB", "16GiB", "12GiB", "8GiB", "4GiB")
"""Sizes of GPUs."""
_GRAPHS = {
    "text_encoder": ("text_encoder",),
    "transformer": ("denoise", "conditioning", "modulation"),
    "vae": ("decode", "encode"),
}
"""Component -> graphs that have all of its weights."""
_SIDE = 1024
_CARD = "gpu:0"


def list_placements(arguments: argparse.Namespace) -> int:
    """Say where components would go on GPUs of some sizes, drawing one guided picture.

    Args:
        arguments: From `max_zimage.cli.main`; `memory` has the sizes.

    Returns:
        The exit code, 0.

    Raises:
        BadInput: If a size is none, or a flag has no meaning with it.
    """
    with checking():
        sizes = _sizes(arguments)
        _check(arguments)
        specs = specs_of(arguments.model)
        dtype: ModelDtype = "float32" if arguments.dtype == "float32" else "bfloat16"
        height, width = (_SIDE if side is None else side for side in (arguments.height, arguments.width))
        weights = weight_bytes(specs, dtype)
        dtypes: dict[str, ModelDtype] = dict.fromkeys(STAGES, dtype)
        needs = needs_by_shape(specs, dtypes, weights, Size(height=height, width=width, branches=2), False)
        found = [chosen(needs, size, arguments.placement or "auto") for size in sizes]
    facts = {
        "model": arguments.model or PUBLISHED,
        "dtype": dtype,
        "height": height,
        "width": width,
        "components": {name: vars(each) for name, each in needs.items()},
        "placements": found,
    }
    print(json.dumps(facts)) if arguments.json else _print(facts)
    return 0


def chosen(needs: Needs, memory: int, placement: str = "auto") -> dict[str, Any]:
    """What would be done with a GPU.

    Args:
        needs: What the components take.
        memory: Bytes of the GPU.
        placement: As it is asked for.
    """
    wish = Wish(placement=next(each for each in PLACEMENTS if each == placement), devices=dict.fromkeys(STAGES, _CARD))
    facts: dict[str, Any] = {"memory_bytes": memory}
    try:
        plan = place(needs, {_CARD: usable(memory), HOST: available_memory()}, wish)
    except NotEnoughMemoryError as error:
        return {**facts, "fits": False, "words": str(error).splitlines()[0]}
    return {
        **facts,
        "fits": True,
        "devices": dict(plan.devices),
        "residency": plan.residency,
        "decodes_alone": plan.decodes_alone,
        "peaks": dict(plan.peaks),
        "words": plan.why,
    }


def weight_bytes(specs: Any, dtype: ModelDtype) -> dict[str, int]:
    """Component -> bytes of its weights, from the graphs that read them; of no file."""
    device = DeviceRef.from_device(CPU())
    found = {}
    for component, graphs in _GRAPHS.items():
        parameters: dict[str, int] = {}
        for name in graphs:
            module, _ = made(name, specs, dtype, device)
            for parameter, each in module.parameters:
                key = parameter.removeprefix("predict.").removeprefix("transformer.")
                parameters[key] = prod(map(int, each.shape)) * each.dtype.size_in_bytes
        found[component] = sum(parameters.values())
    return found


def _sizes(arguments: argparse.Namespace) -> list[int]:
    found, problems = [], []
    for text in arguments.memory or COMMON:
        try:
            found.append(read_size(text))
        except ValueError as error:
            problems.append(f"--memory {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what would have no effect."""
    idle = ("max_memory", "encoder_device", "dit_device", "vae_device", "cpu_offload", "quantize", "check_weights")
    given = [f"--{name.replace('_', '-')}" for name in idle if getattr(arguments, name)]
    given += ["--weight-path"] if arguments.weight_path else []
    given += ["--device"] if arguments.device != "auto" else []
    if given:
        raise ValueError(f"{', '.join(given)} has no meaning with --memory; leave one of the two out")
    if arguments.placement is not None and arguments.placement not in PLACEMENTS:
        raise ValueError(f"placement must be {', '.join(PLACEMENTS)}, got {arguments.placement!r}")
    for name in ("height", "width"):
        side = getattr(arguments, name)
        if side is not None and (side < 16 or side % 16):
            raise ValueError(f"{name} must be a multiple of 16 and at least 16, got {side}")


def _print(facts: Mapping[str, Any]) -> None:
    console = table_console()
    title = f"{facts['model']} in {facts['dtype']}, a guided picture of {facts['width']}x{facts['height']} pixels"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("component", "weights", "work, about"):
        table.add_column(heading, justify="left" if heading == "component" else "right")
    for name, each in facts["components"].items():
        table.add_row(name, gib(each["weights"]), gib(each["work"]))
    console.print(table)
    for each in facts["placements"]:
        console.print(f"{gib(each['memory_bytes'])}: {each['words']}")
