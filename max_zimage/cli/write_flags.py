"""The flags of `max-zimage write`."""

from __future__ import annotations

import argparse
from typing import Any

from max_zimage import embedded
from max_zimage.cli.model_flags import DTYPES

NUMBERS = {
    "max_new_tokens": "--max-new-tokens",
    "num_denoising_steps": "--steps",
    "entropy_bound": "--entropy-bound",
    "t_max": "--t-max",
    "t_min": "--t-min",
    "confidence_threshold": "--confidence-threshold",
    "stability_threshold": "--stability-threshold",
}
"""Argument of `TextDiffusion.generate` -> its flag."""


def add_write(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: The flags of every command.
    """
    parser = commands.add_parser(
        "write",
        parents=[shared],
        allow_abbrev=False,
        help="write a text, or a full prompt from a short one",
        description="Write a text by block diffusion. The embedded model makes captions of a few words. What is not "
        "given comes from the checkpoint.",
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what to write about, or to answer")
    parser.add_argument("--seed", type=int, metavar="N", help="makes a text again; drawn if not given")
    parser.add_argument("--quiet", action="store_true", help="no drafts and no progress: the text and errors alone")
    numbers = parser.add_argument_group("how it is written")
    numbers.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens of the text")
    numbers.add_argument(
        "--steps",
        "--num-denoising-steps",
        dest="num_denoising_steps",
        type=int,
        metavar="N",
        help="most denoising steps of a canvas",
    )
    numbers.add_argument("--entropy-bound", type=float, metavar="X", help="uncertainty taken in one step, in nats")
    numbers.add_argument("--t-max", type=float, metavar="X", help="temperature of the first step")
    numbers.add_argument("--t-min", type=float, metavar="X", help="temperature that the steps go down to")
    help = "mean entropy, in nats, below which a canvas is done"
    numbers.add_argument("--confidence-threshold", type=float, metavar="X", help=help)
    help = "steps that the likeliest tokens stay the same before it is done"
    numbers.add_argument("--stability-threshold", type=int, metavar="N", help=help)
    model = parser.add_argument_group("the model")
    help = f"a directory of a DiffusionGemma; the embedded {embedded.TEXT_NAME} if not given"
    model.add_argument("--model", "--model-path", metavar="MODEL", default=embedded.TEXT_NAME, help=help)
    model.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 on a GPU, or float32")
