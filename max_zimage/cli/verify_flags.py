"""The flags of `max-zimage verify`; apart from the command, which imports MAX."""

from __future__ import annotations

import argparse
from typing import Any

from max_zimage import embedded
from max_zimage.cli.common import DEFAULT_PROMPT
from max_zimage.cli.field_flags import add_flag


def add_verify(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: Flags that it has in common with others.
    """
    parser = commands.add_parser(
        "verify",
        parents=[shared],
        allow_abbrev=False,
        help="compare a checkpoint with diffusers on this machine, stage by stage",
        description="Compare a checkpoint with diffusers on this machine, stage by stage, in float32 and bfloat16. The "
        "report names the first stage that fails and can be pasted into an issue. Diffusers and PyTorch must be "
        'installed: pip install "max-zimage[verify]".',
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help=f"a directory or a hub id; the embedded {embedded.NAME} if not given"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--weight-path", action="append", metavar="FILE", default=[], help="in place of its weights")
    parser.add_argument(
        "--device", default="auto", help="of the engine: auto, cpu, gpu or gpu:N; diffusers takes the CPU"
    )
    parser.add_argument("--dtype", choices=("both", "float32", "bfloat16"), default="both", help="of both sides")
    parser.add_argument(
        "--reference", metavar="MODEL", help="another checkpoint for diffusers, e.g. the one that MODEL was made from"
    )
    picture = parser.add_argument_group("the picture")
    picture.add_argument("--prompt", metavar="TEXT", default=DEFAULT_PROMPT, help=f'"{DEFAULT_PROMPT}" if not given')
    add_flag(picture, "height", help="256 if not given")
    add_flag(picture, "width", help="208 if not given, which makes pad tokens of the image")
    add_flag(picture, "num_inference_steps", help="4 if not given")
    add_flag(picture, "seed", help="of the noise; 0 if not given")
