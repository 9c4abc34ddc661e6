"""The flags that commands have in common: the model, what it runs in, and the configuration file."""

from __future__ import annotations

import argparse

from max_zimage import embedded
from max_zimage.cli.common import QUANTIZE_HELP, at_least_one
from max_zimage.cli.placement_flags import add_placement
from max_zimage.request.configuration.values import (
    ATTENTION,
    OTHER_ATTENTION,
    QUANTIZATIONS,
    TOKENS_KEPT,
    size_of,
)

DEFAULT_CACHE = 256 * 2**20
"""Bytes of --embedding-cache without a size."""
DTYPES = ("auto", "float32", "bfloat16")


def add_model(
    parser: argparse.ArgumentParser, weights: str = "in place of its own weights", *, places: bool = True
) -> argparse._ArgumentGroup:
    """Add the flags of commands that load a model, and name it by a flag.

    Args:
        parser: Of the command.
        weights: The help of --weight-path.
        places: Whether more than one component is loaded, each of which may have a place of its own.

    Returns:
        The group of the model's own flags.
    """
    model = parser.add_argument_group("the model")
    add_model_name(model)
    model.add_argument("--weight-path", action="append", metavar="FILE", default=[], help=weights)
    add_running(model)
    if places:
        add_placement(parser)
    add_configuration(parser)
    return model


def add_model_name(model: argparse._ArgumentGroup) -> None:
    """Add the flag that names a model."""
    help = f"a directory or a hub id; the embedded {embedded.NAME} if not given"
    model.add_argument("--model", "--model-path", metavar="MODEL", help=help)


def add_running(model: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flags that say where and in which numbers a model runs."""
    model.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    model.add_argument("--dtype", "--torch-dtype", choices=DTYPES, help="auto: bfloat16 on a GPU, or float32")
    model.add_argument("--quantize", metavar="WHAT", help=QUANTIZE_HELP)
    add_attention(model)
    model.add_argument(
        "--quantization",
        choices=tuple(QUANTIZATIONS),
        help="of the text encoder, as llm-dit names it: 8bit is text_encoder=int8, 4bit is text_encoder=q4",
    )


def add_attention(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flag that says how attention is computed."""
    group.add_argument(
        "--attention-backend",
        choices=(*ATTENTION, *OTHER_ATTENTION),
        metavar="NAME",
        help=f"how attention is computed: {', '.join(ATTENTION)}",
    )


def add_cache(group: argparse._ArgumentGroup, default: int | None) -> None:
    """Add the flags of the cache of features.

    Args:
        group: Where to.
        default: Bytes where no flag is given; None or 0 for no cache.
    """
    usual = "256MiB without a size" if not default else "256MiB if not given"
    group.add_argument(
        "--embedding-cache",
        type=size,
        nargs="?",
        const=DEFAULT_CACHE,
        default=default,
        metavar="SIZE",
        help=f"features of prompts that are kept, as 512MiB or 1GiB or bytes; 0 for none, {usual}",
    )
    group.add_argument(
        "--cache-size", type=at_least_one, metavar="N", help=f"the same in prompts, {TOKENS_KEPT / 2**20:g} MiB each"
    )


def size(text: str) -> int:
    """Bytes, as a number or with a unit.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    try:
        return size_of(int(text) if text.isascii() and text.isdigit() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a configuration."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config", metavar="FILE", help="config.toml in $XDG_CONFIG_HOME/max-zimage if not given, and if it is there"
    )
    group.add_argument("--profile", dest="chosen_profile", metavar="NAME", help="of that file; default if not given")
