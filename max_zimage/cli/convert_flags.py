"""The flags of `max-zimage convert`."""

from __future__ import annotations

import argparse
from typing import Any


def add_convert(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: Flags of every command.
    """
    parser = commands.add_parser(
        "convert",
        parents=[shared],
        allow_abbrev=False,
        help="write a checkpoint in another layout or type",
        description="Write a checkpoint in another layout, with other types, or with LoRAs in its weights. Memory "
        "holds a piece of a tensor at a time; the output appears when it is complete.",
    )
    parser.add_argument("input", metavar="INPUT", help="a directory, a hub id, a weight file, or the index of several")
    parser.add_argument("--output", required=True, metavar="PATH", help="the file or directory that is written")
    parser.add_argument("--layout", required=True, metavar="NAME", help="diffusers, original, all-in-one or gguf")
    parser.add_argument(
        "--type",
        metavar="TYPE",
        help="float32, bfloat16, float16, fp8_scaled, q8_0, q5_0, q5_1, q4_0 or q4_1; as in the input if not given",
    )
    parser.add_argument(
        "--component",
        action="append",
        metavar="NAME",
        default=[],
        help="text_encoder, transformer or vae, may be repeated; all if not given, for gguf the transformer",
    )
    parser.add_argument(
        "--lora", action="append", metavar="FILE:SCALE", default=[], help="add a LoRA to the weights; may be repeated"
    )
    parser.add_argument("--keep-refiners", action="store_true", help="do not quantize the transformer's refiners")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    folder = parser.add_argument_group("a directory made of weight files")
    folder.add_argument("--configs", metavar="MODEL", help="where configurations, tokenizer and scheduler come from")
    folder.add_argument("--shift", type=float, metavar="SHIFT", help="of the scheduler: 3 for Turbo, 6 for the base")
    folder.add_argument(
        "--shard-gb", type=float, metavar="GB", default=5.0, help="most a file holds of the layout diffusers"
    )
