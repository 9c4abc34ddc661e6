"""What a checkpoint is, as facts."""

from __future__ import annotations

from math import prod
from typing import Any

from max_zimage.checkpoint.plan import LoadPlan
from max_zimage.cli.info_storages import storage_facts
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.request.limits import Limits, RequestDefaults


def model_facts(name: str, prepared: CheckedModel) -> dict[str, Any]:
    """What a checkpoint is."""
    sources = prepared.sources
    return {
        "name": name,
        "components": [component_facts(sources.plans[part], sources.dtypes[part]) for part in sources.plans],
        "shift": sources.specs.schedule.shift,
        "defaults": _public(sources.defaults),
        "limits": _public(sources.limits),
        "storages": storage_facts(sources.plans),
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
