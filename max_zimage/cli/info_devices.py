"""What `max-zimage info` says of devices."""

from __future__ import annotations

import platform
from typing import Any

from max.driver import Accelerator, accelerator_api, accelerator_architecture_name, accelerator_count

from max_zimage.compile.inner_loops import described
from max_zimage.device.memory import available_memory


def devices() -> list[dict[str, Any]]:
    """The CPU and every accelerator, with the bytes that are free."""
    found: list[dict[str, Any]] = [
        {
            "name": "cpu",
            "kind": platform.machine(),
            "free_bytes": available_memory(),
            "bfloat16_products": described(),
        }
    ]
    for number in range(accelerator_count()):
        free = Accelerator(number).stats.get("free_memory")
        kind = f"{accelerator_api()} {accelerator_architecture_name()}"
        found.append({"name": f"gpu:{number}", "kind": kind, "free_bytes": free})
    return found
