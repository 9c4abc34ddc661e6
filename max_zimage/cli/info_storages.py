"""What a model's weights take in each way to keep them, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from max_zimage.checkpoint.derived import STORED, stored_bytes
from max_zimage.checkpoint.plan import LoadPlan
from max_zimage.host.sizes import gigabytes


def storage_facts(plans: Mapping[str, LoadPlan]) -> list[dict[str, Any]]:
    """Every way to keep the weights, with the bytes of each component.

    Args:
        plans: Of all components.
    """
    return [{"name": each.name, "in": each.place, "bytes": stored_bytes(plans, each)} for each in STORED]


def print_storages(facts: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Show them as a table, in GB of 10⁹ bytes."""
    components = list(facts[0]["bytes"])
    table = Table(title="weights in each storage, derived from shapes", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("storage")
    table.add_column("of")
    for name in components:
        table.add_column(name, justify="right", no_wrap=True)
    for each in facts:
        sizes = (gigabytes(each["bytes"][name]) if name in each["bytes"] else "" for name in components)
        table.add_row(each["name"], each["in"], *sizes)
    console.print(table)
