"""The flags of `max-zimage encode`; apart from the command, which imports MAX."""

from __future__ import annotations

import argparse
from typing import Any

from max_zimage.cli.common import add_encoder_device
from max_zimage.cli.field_flags import add_flag
from max_zimage.cli.model_flags import add_model
from max_zimage.cli.other_flags import add_others

TEXT_FIELDS = (
    "template",
    "system_prompt",
    "thinking_content",
    "assistant_content",
    "hidden_layer",
    "long_prompt_mode",
    "max_sequence_length",
)
"""Fields of a request that say how its prompts are read."""


def add_encode(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: Flags that it has in common with others.
    """
    parser = commands.add_parser(
        "encode",
        parents=[shared],
        allow_abbrev=False,
        help="save a prompt's features, to draw from later or elsewhere",
        description="Save the text features of a prompt, for generate --embeddings. Only the text encoder is loaded.",
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what to show")
    add_flag(parser, "negative_prompt", help='what to keep away from, encoded too; "" for guidance without one')
    parser.add_argument("--output", metavar="FILE", required=True, help="a name that ends in .safetensors")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    texts = parser.add_argument_group("how it is read")
    for name in TEXT_FIELDS:
        add_flag(texts, name)
    texts.add_argument("--templates-dir", metavar="DIR", help="templates of your own, before the shipped ones")
    model = add_model(parser, places=False)
    add_encoder_device(model, "where the text encoder runs; --device if not given")
    add_others(parser)


def add_saving(parser: argparse.ArgumentParser) -> None:
    """Add the flags by which `generate` saves features, as llm-dit has them."""
    parser.add_argument("--save-embeddings", metavar="FILE", help="save the prompt's features too, for --embeddings")
    parser.add_argument("--encoder-only", action="store_true", help="save them and draw nothing, as encode does")
