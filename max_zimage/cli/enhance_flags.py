"""The flags of `max-zimage generate` that write a prompt out before it is drawn; apart from what acts on them."""

from __future__ import annotations

import argparse

from max_zimage.cli.field_flags import add_group

TEMPLATE_HELP = "what models that follow instructions are told; a file as the shipped assets/enhancer/enhance.md"


def add_enhancing(parser: argparse.ArgumentParser) -> None:
    """Add them.

    Args:
        parser: Of the command.
    """
    group = add_group(parser, "enhancing the prompt")
    group.add_argument("--enhance-template", metavar="FILE", help=TEMPLATE_HELP)
    group.add_argument(
        "--show-prompt",
        action="store_true",
        default=None,
        help="print the enhanced prompt and draw nothing; on a terminal, let it be edited and drawn",
    )


def add_enhancer(group: argparse._ArgumentGroup) -> None:
    """Add those of a server, whose requests may ask for it by `enhance` but name nothing.

    Args:
        group: Where to.
    """
    group.add_argument(
        "--enhancer",
        metavar="MODEL",
        nargs="?",
        const="",
        help="requests may have their prompt written out: embedded, encoder, a folder of DiffusionGemma or an http(s) "
        "address; what is configured or goes with the checkpoint if none is named",
    )
    group.add_argument("--enhancer-template", metavar="FILE", help=TEMPLATE_HELP)
