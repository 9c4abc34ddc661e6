"""The words of `max-zimage serve --ray` where they are read again: in the processes of replicas and encoders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from max_zimage.cli.configuring import configure
from max_zimage.cli.given import command_of, given_by
from max_zimage.cli.parser import Parser
from max_zimage.cli.serve_flags import add_serve
from max_zimage.cli.server_settings import settings_of

if TYPE_CHECKING:
    from max_zimage.pipeline.encoder import CheckedEncoder
    from max_zimage.serving.running import Opened
    from max_zimage.serving.settings import ServerLimits


def opened_by(words: Sequence[str]) -> Opened:
    """What a replica is made of.

    Args:
        words: Of the command, behind the program's name.
    """
    from max_zimage.cli.opening import opened

    arguments = arguments_of(words)
    return opened(arguments, settings_of(arguments))


def encoder_by(words: Sequence[str]) -> tuple[CheckedEncoder, ServerLimits]:
    """What an encoder is made of, and a server's limits.

    Args:
        words: Of the command, behind the program's name.
    """
    from max_zimage.checkpoint.locate import COMPONENTS, route_weight_files
    from max_zimage.pipeline.encoder import ZImageTextEncoder
    from max_zimage.pipeline.load_components import UNPREFIXED_COMPONENT

    arguments = arguments_of(words)
    settings = settings_of(arguments)
    weights = [Path(path) for path in settings.weight_paths]
    files = route_weight_files(weights, COMPONENTS, UNPREFIXED_COMPONENT, quiet=True)
    checked = ZImageTextEncoder.prepare(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        weight_path=files.get("text_encoder", ()),
        quantize=arguments.quantize,
        attention_backend=arguments.attention_backend,
        templates_dir=arguments.templates_dir,
        embedding_cache_bytes=settings.embedding_cache_bytes,
        config=arguments.configuration,
    )
    return checked, settings.limits


def arguments_of(words: Sequence[str]) -> argparse.Namespace:
    """The command's words as the command line reads them, configuration and all.

    Args:
        words: Of `max-zimage serve`, behind the program's name.
    """
    arguments = _parser().parse_args(words)
    configure(arguments, given_by(_parser(), words), command_of(_parser(), "serve"))
    return arguments


def given_of(words: Sequence[str]) -> frozenset[str]:
    """Where argparse leaves those that the words give.

    Args:
        words: As of `arguments_of`.
    """
    return given_by(_parser(), words)


def _parser() -> argparse.ArgumentParser:
    """Of the one command: that of all commands imports this module, by way of this one."""
    parser = Parser(prog="max-zimage")
    add_serve(parser.add_subparsers(dest="command"))
    return parser
