"""Where components run, as far as the configuration file says it: all on one device, which it names once.

What llm-dit can say beyond that stands here and nowhere else, so that one file changes when more becomes possible.
"""

from __future__ import annotations

ONE_DEVICE = "all components run on one device and stay there; give [pipeline] device alone"
OFFLOADING = (
    ("encoder", "cpu_offload"),
    ("pipeline", "enable_model_cpu_offload"),
    ("pipeline", "enable_sequential_cpu_offload"),
    ("optimization", "cpu_offload"),
)
"""Keys that ask for components to move; false asks for nothing."""


def check_devices(device: object, encoder_device: object) -> None:
    """Refuse a text encoder on a device of its own.

    Args:
        device: Of the pipeline; "auto" unless it is given.
        encoder_device: Of the text encoder.

    Raises:
        ValueError: If it is another one.
    """
    if encoder_device != "auto" and _plain(encoder_device) != _plain(device):
        raise ValueError(f"is {encoder_device!r} while [pipeline] device is {device!r}: {ONE_DEVICE}")


def _plain(name: object) -> str:
    """A name of a device under which others of the same one are equal."""
    text = str(name).replace("cuda", "gpu").replace("hip", "gpu")
    return "gpu:0" if text == "gpu" else text
