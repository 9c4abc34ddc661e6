"""The facts of `max-zimage info` as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from max_zimage.cli.console import table_console
from max_zimage.cli.info_storages import print_storages
from max_zimage.host.sizes import sized
from max_zimage.host.words import counted


def print_facts(facts: dict[str, Any]) -> None:
    """Print what `info` found."""
    console = table_console()
    model, memory = facts["model"], facts["memory"]
    console.print("  ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    for device in facts["devices"]:
        console.print(f"{device['name']}: {device['kind']}, {_size(device['free_bytes'])} free")
        if products := device.get("bfloat16_products"):
            console.print(f"bfloat16 products: {products}")
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
    print_storages(model["storages"], console)
    defaults, limits = model["defaults"], model["limits"]
    console.print(
        f"drawn unless asked otherwise: {defaults['width']}x{defaults['height']} pixels, "
        f"{defaults['num_inference_steps']} steps, guidance {defaults['guidance_scale']:g}, shift {model['shift']:g}"
    )
    console.print(
        f"at most: {limits['max_width']}x{limits['max_height']} pixels, {limits['max_tokens']} tokens, "
        f"{limits['max_steps']} steps"
    )
    mesh = facts["placement"].get("mesh")
    console.print(
        f"memory on {memory['device']}: {_size(memory['weights_bytes'])} of weights and about "
        f"{_size(memory['activations_bytes_about'])} more for {memory['width']}x{memory['height']} pixels "
        f"{'with' if memory['guided'] else 'without'} guidance; {_size(memory['available_bytes'])} are free: "
        + (f"on {', '.join(mesh)} together " if mesh else "")
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
        verdict = f"not so in {counted(bad, 'tensor')}" if bad else "so in all of them"
        console.print(f"{weights['numbers']:,} numbers of {weights['tensors']} tensors should be finite: {verdict}")


def _shares(storage: Mapping[str, int]) -> str:
    """How many percent of the tensors are stored as what, or what all are."""
    total = sum(storage.values())
    if len(storage) == 1:
        return next(iter(storage))
    return ", ".join(f"{100 * count / total:.0f}% {kind}" for kind, count in storage.items())


def _size(count: int | None) -> str:
    return "unknown" if count is None else sized(count)
