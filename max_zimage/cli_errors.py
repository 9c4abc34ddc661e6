"""Errors as the command line tells them, and the silence of libraries that have nothing to say to its user."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

_FLAGS = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "negative_prompt": "--negative",
    "max_sequence_length": "--max-sequence-length",
    "cfg_normalization": "--cfg-normalization",
    "cfg_truncation": "--cfg-truncation",
    "step_cache": "--step-cache",
    'device="cpu"': "--device cpu",
}
"""Words of the Python API's messages and what they are called here."""

_WORDS = re.compile("|".join(map(re.escape, _FLAGS)))


class BadInput(Exception):
    """What was asked for cannot be done; the message says why."""


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """Take a ValueError for what it is while input is being checked: the input's fault.

    Raises:
        BadInput: In its place, with the names of flags where it has those of the Python API. What is said of a
            checkpoint's files keeps its words: they are those of the files.
    """
    try:
        yield
    except ValueError as error:
        from max_zimage.safetensors_files import CheckpointError  # not before an error: it reads a library

        raise BadInput(str(error) if isinstance(error, CheckpointError) else in_flags(str(error))) from error


def in_flags(message: str) -> str:
    """A message of the Python API with the names of flags in it."""
    return _WORDS.sub(lambda word: _FLAGS[word[0]], message)


def warn(message: str) -> None:
    """Tell of something that is not an error."""
    print(f"max-zimage: warning: {in_flags(message)}", file=sys.stderr)


def error_line(error: Exception) -> str:
    """What stderr gets: one line, or several where several things are wrong."""
    text = str(error).strip()
    if not isinstance(error, BadInput):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"max-zimage: error: {text}"


@contextlib.contextmanager
def quiet_libraries(debug: bool) -> Iterator[TextIO]:
    """Keep MAX's and others' warnings and logs from the terminal, and their prints from stdout.

    Args:
        debug: Whether to let warnings and logs through.

    Yields:
        The real stdout.
    """
    stdout = sys.stdout
    before = logging.root.manager.disable
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        try:
            yield stdout
        finally:
            logging.disable(before)
