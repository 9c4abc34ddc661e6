"""Where a model's components would go: on this machine, or on GPUs of other sizes, which need not be there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from rich import box
from rich.table import Table

from max_zimage.checkpoint.blocks import streams_of
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.checkpoint.derived import derived_plans
from max_zimage.checkpoint.plan import LoadPlan
from max_zimage.cli.console import table_console
from max_zimage.cli.errors import checking
from max_zimage.cli.info_storages import print_storages, storage_facts
from max_zimage.cli.model_shapes import PUBLISHED, specs_of
from max_zimage.device.dtypes import ModelDtype
from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.device.placement import place
from max_zimage.device.plans import HOST, PLACEMENTS, STAGES, Need, Needs, Wish, usable
from max_zimage.host.sizes import read_size, sized
from max_zimage.pipeline.placing import Size, needs_by_shape
from max_zimage.pipeline.storages import named_storages, storage_on

COMMON = ("24GiB", "16GiB", "12GiB", "8GiB", "4GiB")
"""Sizes of GPUs."""
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
        named = named_storages(arguments.quantize)
        storages = {name: storage_on(each, False) for name, each in named.items()}
        on_host = [name for name, each in storages.items() if each is None]
        kept = {name: storages.get(name) or storage_on(named[name], True) for name in named}
        plans = {name: replace(each, kept_as=kept.get(name)) for name, each in derived_plans(specs).items()}
        needs = card_needs(specs, plans, dtype, height=height, width=width)
        found = [chosen(needs, size, arguments.placement or "auto", on_host) for size in sizes]
    facts = {
        "model": arguments.model or PUBLISHED,
        "dtype": dtype,
        "height": height,
        "width": width,
        "derived": True,
        "components": {name: asdict(each) for name, each in needs.items()},
        "quantize": named,
        "on_host": on_host,
        "storages": storage_facts(plans),
        "placements": found,
    }
    print(json.dumps(facts)) if arguments.json else _print(facts)
    return 0


def card_needs(
    specs: ModelSpecs, plans: Mapping[str, LoadPlan], dtype: ModelDtype, *, height: int, width: int
) -> dict[str, Need]:
    """What the components take for one guided picture, decoded on a GPU.

    Args:
        specs: Shapes of the model.
        plans: From `derived_plans`.
        dtype: Of computation.
        height: Pixels.
        width: Pixels.
    """
    weights = {name: each.nbytes(dtype) for name, each in plans.items()}
    dtypes: dict[str, ModelDtype] = dict.fromkeys(STAGES, dtype)
    streams = streams_of(plans["transformer"], dtype, specs.transformer)
    widened = {name: each.widened_bytes(dtype) for name, each in plans.items()}
    size = Size(height=height, width=width, branches=2)
    return needs_by_shape(specs, dtypes, weights, size, False, streams, widened)


def chosen(needs: Needs, memory: int, placement: str = "auto", on_host: Collection[str] = ()) -> dict[str, Any]:
    """What would be done with a GPU.

    Args:
        needs: What the components take.
        memory: Bytes of the GPU.
        placement: As it is asked for.
        on_host: Components that run on the CPU: those in a storage that is for one.
    """
    devices = {name: HOST if name in on_host else _CARD for name in STAGES}
    wish = Wish(
        placement=next(each for each in PLACEMENTS if each == placement), devices=devices, named=frozenset(on_host)
    )
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
        "stay": plan.stay,
        "peaks": dict(plan.peaks),
        "words": plan.why,
    }


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
    idle = (
        "max_memory",
        "encoder_device",
        "dit_device",
        "vae_device",
        "cpu_offload",
        "check_weights",
        "devices",
        "split",
    )
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
    if facts["quantize"]:
        ways = [
            f"{name} in {storage}" + (" on the CPU" if name in facts["on_host"] else "")
            for name, storage in facts["quantize"].items()
        ]
        title += f"; {', '.join(ways)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("component", "weights", "work, about"):
        table.add_column(heading, justify="left" if heading == "component" else "right")
    for name, each in facts["components"].items():
        table.add_row(name, sized(each["weights"]), sized(each["work"]))
    console.print(table)
    print_storages(facts["storages"], console)
    for each in facts["placements"]:
        console.print(f"{sized(each['memory_bytes'])}: {each['words']}")
