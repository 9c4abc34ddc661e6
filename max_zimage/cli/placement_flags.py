"""The flags that say where components run and which of them stay in memory; apart from commands, which import MAX."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from max_zimage.cli.common import add_encoder_device

if TYPE_CHECKING:
    from max_zimage.pipeline.loading import CheckedModel
    from max_zimage.request.request import GenerationRequest

_DEVICES = {
    "dit_device": "where the transformer runs; --device if not given",
    "vae_device": "where the autoencoder runs; --device if not given",
}
_NAMES = ("placement", "max_memory", "encoder_device", *_DEVICES, "cpu_offload", "devices", "split")


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a command."""
    group = parser.add_argument_group("where components run")
    group.add_argument(
        "--placement",
        metavar="HOW",
        help="resident (all stay in memory), sequential (text encoder and transformer take turns), streamed (and the "
        "transformer's blocks come one after another, but for those that have room), or auto, the first that fits, "
        "which is the default",
    )
    group.add_argument(
        "--max-memory", metavar="SIZE", help="of the transformer's device, such as 8GiB; all there is if not given"
    )
    add_encoder_device(group, "where the text encoder runs; --device if not given")
    for name, help in _DEVICES.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar="DEVICE", help=help)
    group.add_argument(
        "--devices",
        metavar="GPUS",
        help="two to eight GPUs that compute each picture together, such as gpu:0,1, in place of --device; each holds "
        "the transformer, the first one everything",
    )
    group.add_argument(
        "--split",
        metavar="WHAT",
        help="what they share: tokens of each picture, branches of guidance between two halves of them, or auto, "
        "branches where the model's pictures are guided by default",
    )
    group.add_argument("--cpu-offload", action="store_true", help="--placement sequential, where there is a GPU")


def wanted_places(arguments: argparse.Namespace) -> bool:
    """Whether any of the flags is given."""
    return any(placement_options(arguments).values())


def placement_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as `ZImagePipeline.prepare` takes it."""
    given = {name: getattr(arguments, name) for name in _NAMES}
    return {name: value for name, value in given.items() if value is not None}


def placed(prepared: CheckedModel, request: GenerationRequest, arguments: argparse.Namespace) -> CheckedModel:
    """Choose where components go for a request, and say so where it was asked for or is not the plain way.

    Raises:
        NotEnoughMemoryError: If nothing fits.
    """
    from max_zimage.pipeline.placed_requests import placed_for

    found = placed_for(prepared, request)
    is_told = found.plan is not None and (wanted_places(arguments) or not found.plan.is_plain)
    if found.plan is not None and is_told and not arguments.quiet:
        print(f"max-zimage: placement: {found.plan.why}", file=sys.stderr)
    return found
