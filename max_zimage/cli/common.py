"""What several commands share: the prompt they fall back to, and readers of numbers."""

from __future__ import annotations

import argparse

QUANTIZE_HELP = "transformer=int8,text_encoder=q4 or one of them: weights in 8 bits, or on a CPU in 4"
DEFAULT_PROMPT = "a red star on a blue background"
"""Drawn where neither a prompt nor a picture to repeat is given."""


def add_encoder_device(parser: argparse._ActionsContainer, help: str) -> None:
    """Add `--encoder-device`, under llm-dit's name too."""
    parser.add_argument("--encoder-device", "--text-encoder-device", metavar="DEVICE", help=help)


def at_least_one(text: str) -> int:
    """Read a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: If it is 0 or negative.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
