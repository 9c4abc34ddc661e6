"""Where the components of a model go and which of them are in memory together: a choice by sizes alone.

Three stages follow each other: text encoder, transformer, autoencoder. A component needs the memory of its weights as
long as they are there, and that of its work while its stage lasts.

    resident     all weights stay
    sequential   text encoder and transformer take turns, the small autoencoder stays; where decoding does not fit
                 beside the transformer, that leaves before it

Nothing here changes what is computed: components are moved and take turns, they are not quantized. Of what fits, the
first is taken that costs the least time and keeps every stage where it was asked for: resident, sequential, and then
with the text encoder on the CPU, whose bfloat16 rounds otherwise than an accelerator's.

Reference: `reference/weights.md` section 4; stable-diffusion.cpp's --auto-fit, ComfyUI's model management.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, get_args

from max_zimage.device.memory import NotEnoughMemoryError, gib

Residency = Literal["resident", "sequential"]
Placement = Literal["auto", "resident", "sequential"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

STAGES = ("text_encoder", "transformer", "vae")
"""The components, in the order in which they work."""
_IN_TURNS = ("text_encoder", "transformer")
HOST = "cpu"
RESERVED = 600_000_000
"""Bytes of an accelerator that its driver and the allocator's rounding take."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a component takes, in bytes.

    Attributes:
        weights: As they are in memory.
        work: Beside them, at most, while its stage lasts.
    """

    weights: int
    work: int


Needs = Mapping[str, Need]
"""Component -> what it takes; without those that are not loaded."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What somebody asks for.

    Attributes:
        placement: What stays in memory; "auto" for the first that fits.
        devices: Component -> where it runs, such as "cpu" or "gpu:0".
        named: Components that are to run there and nowhere else.
        max_memory: Bytes of the transformer's device that may be taken; None for all there is.
        notes: What of it has no effect here, in sentences.
    """

    placement: Placement = "auto"
    devices: Mapping[str, str]
    named: frozenset[str] = frozenset()
    max_memory: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def asks(self) -> bool:
        """Whether anything was said of it."""
        return self.placement != "auto" or bool(self.named) or self.max_memory is not None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done.

    Attributes:
        devices: Component -> where it runs.
        residency: What stays in memory.
        decodes_alone: Whether the transformer leaves before the autoencoder works.
        peaks: Device -> bytes that are taken at most, about.
        why: In words.
    """

    devices: Mapping[str, str]
    residency: Residency = "resident"
    decodes_alone: bool = False
    peaks: Mapping[str, int] = field(default_factory=dict)
    why: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether all components stay on one device."""
        return self.residency == "resident" and len({*self.devices.values()}) == 1

    def others_of(self, component: str) -> tuple[str, ...]:
        """The components that leave before this one comes."""
        if self.residency == "resident" or component not in _IN_TURNS:
            return ()
        return tuple(name for name in _IN_TURNS if name != component)

    def beside(self, component: str) -> list[str]:
        """The components whose weights are on its device while its own are."""
        gone = {component, *self.others_of(component)}
        return [name for name, device in self.devices.items() if name not in gone and device == self.devices[component]]

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What `to_json` gave."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Change:
    """Something else that could be asked for.

    Attributes:
        words: How.
        needs: What the components take then.
    """

    words: str
    needs: Needs


def place(needs: Needs, memory: Mapping[str, int], wish: Wish, changes: Sequence[Change] = ()) -> Plan:
    """Choose.

    Args:
        needs: What the components take.
        memory: Device -> bytes that can be taken there: those that are asked for, and the CPU.
        wish: What is asked for.
        changes: What else could be asked for, the smallest change first; one that fits is named in the error.

    Raises:
        NotEnoughMemoryError: If nothing fits, with a table of the components.
    """
    found = _first(needs, memory, wish)
    if found is not None:
        return found
    wanted = _placed(needs, *next(_candidates(needs, wish)))
    raise NotEnoughMemoryError(_refusal(needs, memory, wish, wanted, _ways_out(needs, memory, wish, changes)))


def with_peaks(plan: Plan, needs: Needs) -> Plan:
    """The same plan for other pictures: with the memory that it takes for them."""
    return replace(plan, peaks=_placed(needs, plan.devices, plan.residency, plan.decodes_alone).peaks)


def usable(total: int) -> int:
    """What of an accelerator's memory can be taken."""
    return max(0, total - RESERVED)


def _first(needs: Needs, memory: Mapping[str, int], wish: Wish) -> Plan | None:
    allowed = _allowed(memory, wish)
    tried: list[Plan] = []
    for devices, residency, alone in _candidates(needs, wish):
        plan = _placed(needs, devices, residency, alone)
        if all(peak <= allowed[device] for device, peak in plan.peaks.items()):
            return replace(plan, why=_reason(plan, tried, allowed, wish))
        tried.append(plan)
    return None


def _allowed(memory: Mapping[str, int], wish: Wish) -> dict[str, int]:
    """Bytes of each device that may be taken."""
    allowed, main = dict(memory), wish.devices["transformer"]
    if wish.max_memory is not None:
        allowed[main] = min(allowed[main], wish.max_memory)
    return allowed


def _candidates(needs: Needs, wish: Wish) -> Iterator[tuple[Mapping[str, str], Residency, bool]]:
    """What may be done, the best first."""
    devices = {name: wish.devices[name] for name in needs}
    if wish.placement in ("auto", "resident"):
        yield devices, "resident", False
    if wish.placement in ("auto", "sequential"):
        yield devices, "sequential", False
        yield devices, "sequential", True
    can_move = devices.get("text_encoder", HOST) != HOST and "text_encoder" not in wish.named
    if can_move and wish.placement == "auto":
        moved = {**devices, "text_encoder": HOST}
        yield moved, "resident", False
        yield moved, "sequential", True


def _placed(needs: Needs, devices: Mapping[str, str], residency: Residency, alone: bool) -> Plan:
    """A plan with the memory that it takes."""
    plan = Plan(devices=devices, residency=residency, decodes_alone=alone)
    peaks = dict.fromkeys(devices.values(), 0)
    for stage in (name for name in STAGES if name in needs):
        for device in peaks:
            own = sum(needs[name].weights for name in _there(plan, stage) if devices[name] == device)
            own += needs[stage].work if devices[stage] == device else 0
            peaks[device] = max(peaks[device], own)
    return replace(plan, peaks=peaks)


def _there(plan: Plan, stage: str) -> list[str]:
    """The components whose weights are in memory in a stage."""
    gone = {*plan.others_of(stage)}
    if stage == "vae" and plan.residency == "sequential":
        gone = {"text_encoder", "transformer"} if plan.decodes_alone else {"text_encoder"}
    return [name for name in plan.devices if name not in gone]


def _reason(plan: Plan, tried: Sequence[Plan], allowed: Mapping[str, int], wish: Wish) -> str:
    """What is done, and why nothing that comes before it."""
    where = {device: [name for name in STAGES if plan.devices.get(name) == device] for device in plan.peaks}
    said = "; ".join(
        f"{_listed(names)} on {device}, about {gib(plan.peaks[device])} of {gib(allowed[device])}"
        for device, names in where.items()
        if names
    )
    steps = ["text encoder and transformer take turns"] if {*_IN_TURNS} <= plan.devices.keys() else []
    steps += ["the transformer leaves before decoding"] if plan.decodes_alone else []
    how = "all stay in memory" if plan.residency == "resident" or not steps else ", and ".join(steps)
    if wish.placement != "auto" or not tried:
        return f"{how}: {said}"
    main = wish.devices["transformer"]
    needed = tried[0].peaks[main]
    return f"{how}: {said} (with all of them there it would be {gib(needed)})"


def _listed(names: Sequence[str]) -> str:
    words = [name.replace("_", " ") for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _ways_out(needs: Needs, memory: Mapping[str, int], wish: Wish, changes: Sequence[Change]) -> list[str]:
    """The smallest changes that fit: of what is asked for, or else of how much may be taken."""
    ways = []
    if wish.placement != "auto":
        # Whatever is chosen, the same is drawn.
        freed = replace(wish, placement="auto")
        if (plan := _first(needs, memory, freed)) is not None:
            ways.append(f'placement="{plan.residency if plan.devices == wish.devices else "auto"}"')
    for change in changes if not ways else ():
        if _first(change.needs, memory, replace(wish, placement="auto")) is not None:
            ways.append(change.words)
            break
    if not ways and "text_encoder" in wish.named and wish.devices["text_encoder"] != HOST:
        moved = replace(wish, placement="auto", devices={**wish.devices, "text_encoder": HOST})
        if _first(needs, memory, moved) is not None:
            ways.append(f'encoder_device="{HOST}"')
    if wish.max_memory is not None:
        main = wish.devices["transformer"]
        plans = [_placed(needs, *each) for each in _candidates(needs, wish)]
        fits = [each for each in plans if all(peak <= memory[device] for device, peak in each.peaks.items())]
        if fits:
            least = min(each.peaks[main] for each in fits)
            ways.append(f"max_memory={_rounded_up(least)}")
    return ways


def _rounded_up(count: int) -> str:
    """Bytes as `max_memory` takes them, in whole MiB and no fewer."""
    return f'"{-(-count // 2**20)}MiB"'


def _refusal(needs: Needs, memory: Mapping[str, int], wish: Wish, wanted: Plan, ways: Sequence[str]) -> str:
    allowed = _allowed(memory, wish)
    rows = [
        f"  {name:<12} on {wanted.devices[name]:<6} weights {gib(each.weights):>9}, work {gib(each.work):>9}"
        for name, each in needs.items()
    ]
    there = "; ".join(
        f"{device} has {gib(allowed[device])} for them, {gib(peak)} are needed" for device, peak in wanted.peaks.items()
    )
    out = f"{' or '.join(ways)} would fit" if ways else "nothing that could be changed would fit: take a larger device"
    return "\n".join([f"the model does not fit (placement {wish.placement}): {there}; {out}", *rows])
