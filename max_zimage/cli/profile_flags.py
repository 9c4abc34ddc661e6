"""The flags of `max-zimage profile`; apart from the command, which imports MAX."""

from __future__ import annotations

import argparse
from typing import Any

from max_zimage.cli.common import at_least_one
from max_zimage.cli.field_flags import add_flag
from max_zimage.cli.model_flags import add_cache, add_configuration, add_running
from max_zimage.cli.other_flags import add_others
from max_zimage.cli.placement_flags import add_placement
from max_zimage.cli.sweep_configurations import ALL, DEVICES

COMPONENTS = ("text_encoder", "transformer", "vae")


def add_profile(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: Flags that it has in common with others.
    """
    parser = commands.add_parser(
        "profile",
        parents=[shared],
        allow_abbrev=False,
        help="where the seconds of a picture go, component by component",
        description="Where the seconds of a picture go, component by component. With --component one of them alone, on "
        "random weights and inputs, without a checkpoint.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a directory or a hub id; the embedded model if not given, and with --component the widths of Z-Image",
    )
    picture = parser.add_argument_group("the picture")
    for name in ("prompt", "height", "width", "num_inference_steps", "guidance_scale"):
        add_flag(picture, name)
    add_flag(picture, "step_cache", help="as of generate")
    picture.add_argument("--batch", type=at_least_one, metavar="N", default=1, help="pictures at a time; else 1")
    alone = parser.add_argument_group("one component")
    alone.add_argument("--component", choices=COMPONENTS, help="--batch counts captions, rows of the batch or pictures")
    alone.add_argument(
        "--tokens", type=int, metavar="N", help="a multiple of 32; 128 of a caption, 4128 of image and caption"
    )
    alone.add_argument("--layers", type=at_least_one, metavar="N", help="so many layers only; the model's if not given")
    _add_measuring(parser)
    _add_suite(parser)
    running = parser.add_argument_group("the model")
    running.add_argument("--weight-path", action="append", metavar="FILE", default=[], help="in place of its weights")
    help = "MODEL, as other commands and llm-dit name it"
    running.add_argument("--model", "--model-path", dest="model_path", metavar="MODEL", help=help)
    add_running(running)
    add_cache(running, 0)
    add_placement(parser)
    add_configuration(parser)
    add_others(parser)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--repeats", "--repeat", type=at_least_one, metavar="N", default=5, help="measured runs; 5 if not given"
    )
    measuring.add_argument(
        "--warmup", type=_not_negative, metavar="N", default=1, help="runs between the first and those; 1 if not given"
    )
    measuring.add_argument(
        "--no-sync",
        action="store_true",
        help="wait for the device at the end of a run only, not around every call: what the host costs becomes visible",
    )
    measuring.add_argument("--trace", metavar="FILE", help="all runs as Chrome trace events, for Perfetto")


def _add_suite(parser: argparse.ArgumentParser) -> None:
    suite = parser.add_argument_group("tests in place of parts")
    suite.add_argument(
        "--show-info", action="store_true", help="versions, devices and what is in force; measure nothing"
    )
    suite.add_argument("--tests", metavar="LIST", help="encode, generate or tests by name, as encode_short")
    suite.add_argument(
        "--sweep",
        nargs="?",
        const=ALL,
        action="append",
        metavar="LIST",
        help="the tests in configurations, each loaded afresh; all of them if none is named",
    )
    suite.add_argument(
        "--sweep-devices",
        dest="sweep",
        action="append_const",
        const=DEVICES,
        help="--sweep over where components run, and which of them stay in memory",
    )
    help = "the ways to compute attention, beside the plain one; --tokens of them"
    suite.add_argument("--attention", action="store_true", help=help)
    suite.add_argument("-o", "--output", metavar="FILE", help="write what was found as JSON")


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {number}")
    return number
