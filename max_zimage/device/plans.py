"""What is said of where components go: what they take, what somebody asks for, and what is done.

Reference: `reference/weights.md` section 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from max_zimage.device.offload import PLACES

Residency = Literal["resident", "sequential", "streamed"]
Placement = Literal["auto", "resident", "sequential", "streamed"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

STAGES = ("text_encoder", "transformer", "vae")
"""The components, in the order in which they work."""
IN_TURNS = ("text_encoder", "transformer")
"""Those of them that are large."""
HOST = "cpu"
SIGNALS = 294_387_728
"""Bytes of each device of a mesh for what they tell each other; see `max_zimage.device.signals`."""
RESERVED = 600_000_000
"""Bytes of an accelerator that its driver and the allocator's rounding take."""


@dataclass(frozen=True, kw_only=True)
class Streams:
    """How a component's weights fall into equal blocks that can come one after another, in bytes.

    Attributes:
        count: How many blocks.
        block: Of one.
        around: Of all other weights, which stay.
        passing: What is in the host's memory for a moment, beside a block that is being read.
    """

    count: int
    block: int
    around: int
    passing: int = 0

    def there(self, stay: int) -> int:
        """On the device, where so many blocks stay: each has a place, and of the others two have one at a time."""
        return self.around + min(stay + PLACES, self.count) * self.block

    def waiting(self, stay: int) -> int:
        """In the host's memory, where that is not the device: the blocks that come from there, and one being read."""
        return (self.count - stay + 1) * self.block + self.passing


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What work that several devices can share consists of.

    Attributes:
        items: Branch rows.
        tokens: Of each.
        token: Bytes for each token that a device computes.
        gathered: Bytes for each token of its rows, whoever computes it: keys and values, and the parts they come in.
        score: Bytes for each pair of them in a mask.
    """

    items: int
    tokens: int
    token: int
    gathered: int
    score: int

    def on_each(self, devices: int, groups: int, *, is_padded: bool) -> int:
        """Bytes on each device, at most: a group has half of the rows, or the only one, and of tokens nobody fewer.

        Args:
            devices: How many there are.
            groups: Of them.
            is_padded: Whether rows of unequal length are told apart, by a mask.
        """
        items, size = -(-self.items // groups), devices // groups
        part = -(-self.tokens // size)
        gathered = self.tokens * self.gathered if size > 1 else 0
        mask = part * self.tokens * self.score if is_padded or self.items > 1 else 0
        return items * (part * self.token + gathered + mask)


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a component takes, in bytes.

    Attributes:
        weights: As they are in memory.
        work: Beside them, at most, while its stage lasts.
        streams: How its weights can come in blocks; None where they cannot.
        shared: What that work consists of; None where it is not shared out.
    """

    weights: int
    work: int
    streams: Streams | None = None
    shared: Rows | None = None


Needs = Mapping[str, Need]
"""Component -> what it takes; without those that are not loaded."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What somebody asks for.

    Attributes:
        placement: What stays in memory; "auto" for the first that fits.
        devices: Component -> where it runs, such as "cpu" or "gpu:0".
        named: Components that are to run there and nowhere else.
        mesh: Devices that the transformer runs on together, its own first; none for that one alone.
        split: What these are to share, "auto", "tokens" or "branches".
        groups: Of them, each with some of the branch rows.
        is_padded: Whether their step is to take rows of unequal length from the beginning.
        max_memory: Bytes of the transformer's device that may be taken; None for all there is.
        taken: Device -> bytes that something else will take there.
        notes: What of it has no effect here, in sentences.
    """

    placement: Placement = "auto"
    devices: Mapping[str, str]
    named: frozenset[str] = frozenset()
    mesh: tuple[str, ...] = ()
    split: str = "auto"
    groups: int = 1
    is_padded: bool = False
    max_memory: int | None = None
    taken: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def asks(self) -> bool:
        """Whether anything was said of it."""
        return self.placement != "auto" or bool(self.named) or self.max_memory is not None or bool(self.mesh)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done.

    Attributes:
        devices: Component -> where it runs.
        residency: What stays in memory.
        decodes_alone: Whether the transformer leaves before the autoencoder works.
        stay: Blocks of the transformer that stay, where they are streamed.
        mesh: Devices that the transformer runs on together, its own first; none for that one alone.
        groups: Of them, each with some of the branch rows.
        is_padded: Whether their step takes rows of unequal length from the beginning.
        peaks: Device -> bytes that are taken at most, about.
        why: In words.
    """

    devices: Mapping[str, str]
    residency: Residency = "resident"
    decodes_alone: bool = False
    stay: int = 0
    mesh: tuple[str, ...] = ()
    groups: int = 1
    is_padded: bool = False
    peaks: Mapping[str, int] = field(default_factory=dict)
    why: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether all components stay on one device."""
        return self.residency == "resident" and len({*self.devices.values()}) == 1 and not self.mesh

    def others_of(self, component: str) -> tuple[str, ...]:
        """The components that leave before this one comes."""
        if self.residency == "resident" or component not in IN_TURNS:
            return ()
        return tuple(name for name in IN_TURNS if name != component)

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What `to_json` gave."""
        given = json.loads(text)
        return cls(**{**given, "mesh": tuple(given["mesh"])})


@dataclass(frozen=True)
class Change:
    """Something else that could be asked for.

    Attributes:
        words: How.
        needs: What the components take then.
    """

    words: str
    needs: Needs


def weights_on(device: str, plan: Plan, name: str, need: Need) -> int:
    """Bytes of a component's weights on a device, while they are in memory."""
    own = plan.devices[name] == device
    if plan.mesh and name == "transformer":
        return need.weights + SIGNALS if own or device in plan.mesh else 0
    if plan.residency != "streamed" or need.streams is None:
        return need.weights if own else 0
    if own:
        return need.streams.there(plan.stay) + (need.streams.passing if device == HOST else 0)
    return need.streams.waiting(plan.stay) if device == HOST else 0


def weights_beside(device: str, plan: Plan, name: str, sizes: Mapping[str, int]) -> int:
    """Bytes on a device beside a component's weights: those of others, and what devices of a mesh tell each other.

    Args:
        device: One that the component runs on.
        plan: Where components go.
        name: The component.
        sizes: Component -> bytes of its weights; without those that are not loaded.
    """
    gone = plan.others_of(name)
    beside = {each: Need(weights=0 if each == name else size, work=0) for each, size in sizes.items()}
    return sum(weights_on(device, plan, each, need) for each, need in beside.items() if each not in gone)


def work_on(device: str, plan: Plan, name: str, need: Need) -> int:
    """Bytes of a component's work on a device."""
    if plan.mesh and name == "transformer":
        if device not in plan.mesh or need.shared is None:
            return need.work if device in plan.mesh else 0
        return need.shared.on_each(len(plan.mesh), plan.groups, is_padded=plan.is_padded)
    return need.work if plan.devices[name] == device else 0


def usable(total: int) -> int:
    """What of an accelerator's memory can be taken."""
    return max(0, total - RESERVED)
