"""What `max-zimage verify` has found, as text that can be pasted into an issue and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

from max.driver import accelerator_api, accelerator_architecture_name, accelerator_count

from max_zimage.checkpoint.digest import digest_of_weights
from max_zimage.diagnosis.asked import GUIDANCE, Asked
from max_zimage.diagnosis.stages import STAGES, Comparison
from max_zimage.diagnosis.system import REFERENCE, machine, versions
from max_zimage.pipeline.manifest import CheckpointManifest

_DIGITS = 23
"""Of a digest, "sha256:" included: enough to tell two checkpoints apart."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result.

    Attributes:
        asked: What was drawn.
        device: Where the engine ran.
        checkpoint: From `checkpoint_facts`.
        other_reference: Whether diffusers loaded another checkpoint than the engine.
        comparisons: Every stage in every pair of dtypes.
        left_out: What memory did not allow, in sentences.
        block: The first block of the transformer that is off, where the velocity is.
    """

    asked: Asked
    device: str
    checkpoint: dict[str, Any]
    other_reference: bool
    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...]
    block: str | None

    @property
    def failed(self) -> list[str]:
        """Stages that are off, in the order of computation."""
        off = {each.stage for each in self.comparisons if not each.holds}
        return [stage.name for stage in STAGES if stage.name in off]

    @property
    def points_to(self) -> str | None:
        """What the first stage that fails points to."""
        if not self.failed:
            return None
        (said,) = (stage.points_to for stage in STAGES if stage.name == self.failed[0])
        return f"{said}; the first one that is off is {self.block}" if self._names_block else said

    @property
    def _names_block(self) -> bool:
        return self.block is not None and self.failed[0] == "velocity"

    def to_dict(self) -> dict[str, Any]:
        """What JSON gets."""
        return {
            "verdict": "failed" if self.failed else "passed",
            "first_failure": self.failed[0] if self.failed else None,
            "failed": self.failed,
            "points_to": self.points_to,
            "block": self.block,
            "versions": versions(*REFERENCE),
            "machine": machine() | {"device": self.device, "accelerator": _accelerator()},
            "checkpoint": self.checkpoint | {"other_reference": self.other_reference},
            "picture": asdict(self.asked) | {"guidance_scale": GUIDANCE},
            "comparisons": [_plain(each) for each in self.comparisons],
            "left_out": list(self.left_out),
        }

    def lines(self) -> Iterator[str]:
        """The report as text."""
        told = self.to_dict()
        yield f"max-zimage verify: {told['verdict']}"
        if self.failed:
            yield f"  first stage that fails: {self.failed[0]}"
            yield f"  it points to: {self.points_to}"
        yield ""
        yield "  ".join(f"{name} {number or 'not installed'}" for name, number in told["versions"].items())
        yield "; ".join(f"{value}" for value in _machine_words(told["machine"]))
        yield from _checkpoint_lines(told["checkpoint"])
        size = f"{self.asked.width}x{self.asked.height} pixels, {self.asked.steps} steps, guidance {GUIDANCE:g}"
        yield f"drawn: {size}, seed {self.asked.seed}"
        yield ""
        yield from self._table()
        if self.left_out:
            yield ""
            yield from self.left_out

    def _table(self) -> Iterator[str]:
        """A row for each stage and pair of dtypes."""
        row = "{:15} {:9} {:10} {:>11} {:>11} {:>9}  {}"
        yield row.format("stage", "engine", "diffusers", "relative L2", "largest", "allowed", "").rstrip()
        for stage in STAGES:
            for each in self.comparisons:
                if each.stage == stage.name:
                    numbers = (f"{value:.1e}" for value in (each.relative_l2, each.max_relative, each.bound))
                    verdict = "ok" if each.holds else f"FAILS {each.problem}".rstrip()
                    yield row.format(each.stage, each.engine, each.reference, *numbers, verdict).rstrip()


def checkpoint_facts(name: str, sources: CheckpointManifest) -> dict[str, Any]:
    """What a checkpoint is: shapes and digests, without where it lies."""
    specs = sources.specs
    return {
        "name": Path(name).name if Path(name).exists() else name,
        "components": {
            part: {
                "parameters": sum(prod(recipe.shape) for recipe in plan.recipes),
                "dtype_in_files": plan.dtype,
                "format": plan.format,
                "digest": digest_of_weights(plan),
            }
            for part, plan in sources.plans.items()
        },
        "layers": specs.transformer.num_layers,
        "width": specs.transformer.dim,
        "shift": specs.schedule.shift,
    }


def _checkpoint_lines(facts: dict[str, Any]) -> Iterator[str]:
    other = ", beside another one in diffusers" if facts["other_reference"] else ""
    yield (
        f"checkpoint {facts['name']}{other}: {facts['layers']} layers of width {facts['width']}, "
        f"shift {facts['shift']:g}"
    )
    for name, part in facts["components"].items():
        yield (
            f"  {name}: {part['parameters']:,} parameters, {part['dtype_in_files']} in {part['format']}, "
            f"{part['digest'][:_DIGITS]}"
        )


def _machine_words(facts: dict[str, Any]) -> Iterator[str]:
    yield facts["system"]
    yield from (facts[name] for name in ("libc",) if facts[name])
    yield f"{facts['processor']}, {facts['cores']} cores"
    yield f"the engine on {facts['device']}" + (f" ({facts['accelerator']})" if facts["device"] != "cpu" else "")


def _accelerator() -> str | None:
    if accelerator_count() == 0:
        return None
    return f"{accelerator_api()} {accelerator_architecture_name()}"


def _plain(compared: Comparison) -> dict[str, Any]:
    """A comparison for JSON, which has no infinity."""
    told = asdict(compared) | {"holds": compared.holds}
    return {name: None if isinstance(each, float) and not isfinite(each) else each for name, each in told.items()}
