"""The commands by their names; each is imported when it is asked for, since most import MAX."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def run(arguments: argparse.Namespace) -> int:
    """Run the command that was asked for.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code.
    """
    if arguments.command == "generate" and arguments.encoder_only:
        from max_zimage.cli.encode import encode
        from max_zimage.cli.encoder_only import as_encode

        return encode(as_encode(arguments))
    if arguments.command == "generate":
        from max_zimage.cli.generate import generate

        return generate(arguments)
    if arguments.command == "batch":
        from max_zimage.cli.batch import batch

        return batch(arguments)
    if arguments.command == "encode":
        from max_zimage.cli.encode import encode

        return encode(arguments)
    if arguments.command == "write":
        from max_zimage.cli.write import write

        return write(arguments)
    if arguments.command == "info":
        from max_zimage.cli.info import info
        from max_zimage.cli.info_placements import list_placements

        return info(arguments) if arguments.memory is None else list_placements(arguments)
    if arguments.command == "serve":
        from max_zimage.cli.serve import serve

        return serve(arguments)
    if arguments.command == "profile":
        from max_zimage.cli.profile import profile

        return profile(arguments)
    if arguments.command == "convert":
        from max_zimage.cli.convert import convert_checkpoint

        return convert_checkpoint(arguments)
    if arguments.command == "doctor":
        from max_zimage.cli.doctor import doctor

        return doctor(arguments)
    if arguments.command == "verify":
        from max_zimage.cli.verify import verify

        return verify(arguments)
    from max_zimage.cli.compile import compile_graphs

    return compile_graphs(arguments)


def show(arguments: argparse.Namespace, words: Sequence[str], parser: Callable[[], argparse.ArgumentParser]) -> int:
    """Run `max-zimage config`.

    Args:
        arguments: Its own.
        words: The command whose flags are to be shown too, with them; empty for none.
        parser: Makes the parser of all commands.
    """
    from max_zimage.cli.config import example, show

    return example(parser) if arguments.what == "example" else show(arguments, words, parser)
