"""What a worker is told of where its components go: by the server of its process, or by a variable under MAX's.

MAX hands its worker no settings of ours, so the environment does.
"""

from __future__ import annotations

import os

from max.driver import Device

from max_zimage.device.devices import device_name
from max_zimage.device.mesh import groups_of
from max_zimage.device.placement import everything_on
from max_zimage.device.plans import Plan
from max_zimage.errors import RequestError

VARIABLE = "MAX_ZIMAGE_PLAN"
"""`Plan.to_json` of a server, for its worker, to which MAX hands no settings of ours."""

SPLIT_VARIABLE = "MAX_ZIMAGE_SPLIT"
"""What several devices share where a server of MAX's has them: tokens, unless it says branches."""


def plan_for_worker(devices: list[Device]) -> Plan:
    """What the server of this process has chosen, or else everything on the first device, the transformer on all."""
    given = os.environ.get(VARIABLE)
    if given:
        return Plan.from_json(given)
    return everything_on([*map(device_name, devices)], groups_for_worker(len(devices)) or 1)


def groups_for_worker(count: int) -> int:
    """In how many groups so many devices of this process's server share branch rows; 0 for one device.

    Raises:
        RequestError: If the variable that says it has no meaning, or there is nothing to be shared.
    """
    if given := os.environ.get(VARIABLE):
        plan = Plan.from_json(given)
        return plan.groups if plan.mesh else 0
    split = os.environ.get(SPLIT_VARIABLE) or None  # an empty one is unset, as shells and compose files write it
    # A word that there is not is said first, whatever the number of devices.
    groups = groups_of(split or "auto", 2 if count == 1 else count, is_guided=False, field=SPLIT_VARIABLE)
    if count > 1:
        return groups
    if split is not None:
        message = "{field} says what several devices share, got {given} and one device; unset it, or name several"
        raise RequestError.of(SPLIT_VARIABLE, message, given=split)
    return 0
