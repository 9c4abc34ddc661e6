"""What of a request its company depends on: requests of one shape may share steps, and run on the same captured graphs.

Read from the body as it came, before anything is checked: a wrong value costs a detour, never an answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from max_zimage.request.fields import ROWS

_LARGEST = 4 * 2**20  # bytes of a body that is looked into; beyond there is an image or features in it
_OTHERS = ("size", "quality", "cfg_scale", "sampler_name", "scheduler", "sample_count")
"""Names besides those of the fields: OpenAI's, and AUTOMATIC1111's."""


def _names() -> frozenset[str]:
    found = {*_OTHERS}
    for row in ROWS.values():
        if row.shared != "none" and row.images is not None:
            found |= {row.images.name, *row.images.others}
        if row.shared != "none" and row.responses is not None:
            found.add(row.responses.name)
    return frozenset(found)


NAMES = _names()
"""Fields of bodies that requests must have in common to share steps, by the names of all routes."""


def shape_of(given: Mapping[str, Any] | None) -> str:
    """A short name of the shape that a JSON body asks for; empty where it cannot be told.

    Args:
        given: The body, from `read`.
    """
    if given is None:
        return ""
    options = given.get("provider_options")
    image = options.get("image") if isinstance(options, dict) else None
    fields = {**given, **(image if isinstance(image, dict) else {})}
    told = {name: fields[name] for name in NAMES & fields.keys() if fields[name] is not None}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def has_seed(given: Mapping[str, Any] | None) -> bool:
    """Whether a JSON body names a seed; one that is negative asks for a random one.

    Args:
        given: The body, from `read`.
    """
    seed = (given or {}).get("seed")
    return isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0


def read(body: bytes) -> dict[str, Any] | None:
    """A JSON object; None where the body is none, or too large to be looked into."""
    if not body or len(body) > _LARGEST:
        return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def ranked(shape: str, waiting: Mapping[str, int | None], slack: int, room: int) -> list[str]:
    """Where a request is to go first: to the replica that its shape belongs to, unless that has more to do.

    Every shape has an order of all replicas of its own, by a hash of both, which changes little when one comes or goes
    (rendezvous hashing). The first of it that is idle is taken: nobody waits while another replica could draw. Where
    none is idle, the first that has no more than `slack` requests above the one with the fewest (consistent hashing
    with bounded loads): its request waits anyhow, and maybe for company.

    Reference: Thaler and Ravishankar 1996; Mirrokni, Thorup and Zadimoghaddam 2016 (arXiv:1608.01350).

    Args:
        shape: From `shape_of`; empty for none, where the idlest goes first.
        waiting: Replica -> requests that it has; None where it has not told, which is not to be idle: it comes after
            all that told of room.
        slack: Requests; what more of it costs those who wait is in docs/capacity.md.
        room: Requests that a replica takes; one that has as many comes last, whatever its shape.

    Returns:
        All replicas.
    """
    told = {name: count for name, count in waiting.items() if count is not None}
    least = min(told.values(), default=0)
    most = least + slack if least else 0

    def place(name: str) -> int:
        if name not in told:
            return 2
        return 3 if told[name] >= room else int(bool(shape) and told[name] > most)

    if not shape:
        return sorted(waiting, key=lambda name: (place(name), told.get(name, 0), name))
    order = sorted(waiting, key=lambda name: hashlib.sha256(f"{shape} {name}".encode()).digest())
    return sorted(order, key=place)  # stable: the order among those that are alike stays


def turned(names: Sequence[str]) -> list[list[str]]:
    """The first one alone, and then the others, as Ray's routers rank replicas."""
    return [[names[0]], list(names[1:])] if len(names) > 1 else [list(names)]
