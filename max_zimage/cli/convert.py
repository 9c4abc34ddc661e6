"""`max-zimage convert`: a checkpoint in another layout, with other types, or with LoRAs in its weights."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from max_zimage import embedded
from max_zimage.checkpoint.convert import Conversion, convert
from max_zimage.cli.console import display
from max_zimage.cli.errors import checking, quiet_libraries
from max_zimage.cli.options import model_path
from max_zimage.errors import CheckpointError
from max_zimage.host.sizes import gigabytes
from max_zimage.host.words import counted
from max_zimage.progress import shown_by


def convert_checkpoint(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code.

    Raises:
        BadInput: If the input cannot be read, or the output cannot be made of it.
    """
    began = time.monotonic()
    configs = arguments.configs
    with (
        quiet_libraries(arguments.debug) as stdout,
        checking(),
        shown_by(display(quiet=arguments.quiet or arguments.json)),
    ):
        done = convert(
            model_path(arguments.input),
            arguments.output,
            layout=arguments.layout,
            type=arguments.type,
            components=arguments.component,
            loras=[_lora(text) for text in arguments.lora],
            configs=embedded.PATH if configs == embedded.NAME else configs,
            shift=arguments.shift,
            keep_refiners=arguments.keep_refiners,
            shard_gb=arguments.shard_gb,
            overwrite=arguments.overwrite,
        )
    if arguments.json:
        print(json.dumps({**asdict(done), "path": str(done.path)}), file=stdout)
    elif not arguments.quiet:
        print(f"{_said(done)}, in {time.monotonic() - began:.1f} s", file=stdout)
    return 0


def _said(done: Conversion) -> str:
    stored = ", ".join(f"{count} {word}" for word, count in sorted(done.stored.items(), key=lambda each: -each[1]))
    files = f" in {counted(len(done.files), 'file')}" if done.files else ""
    return f"{done.path}: {', '.join(done.components)}; {gigabytes(done.nbytes)}{files}, tensors: {stored}"


def _lora(text: str) -> tuple[Path, float]:
    """A file and its scale, FILE or FILE:SCALE; a colon before what is no number belongs to the file's name.

    Raises:
        CheckpointError: If there is no file in it.
    """
    file, colon, scale = text.rpartition(":")
    try:
        found = (file, float(scale)) if colon else (text, 1.0)
    except ValueError:
        found = (text, 1.0)
    if not found[0]:
        raise CheckpointError(f"--lora takes FILE or FILE:SCALE, got {text!r}")
    return Path(found[0]), found[1]
