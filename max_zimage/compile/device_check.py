"""What a device needs before graphs run there, checked by whatever loads a model."""

from __future__ import annotations

from max.driver import Device

from max_zimage.compile import device_graphs, device_weights, inner_loops
from max_zimage.device.libraries import check_libraries


def check_device(device: Device) -> None:
    """Check what a device needs, and what is said of it in the environment.

    Raises:
        ValueError: If it lacks a library, or a variable has no meaning.
    """
    check_libraries(device)
    device_graphs.check(device)
    device_weights.shared(device)
    inner_loops.given()
