"""Errors as the command line tells them, and the silence of libraries that have nothing to say to its user."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

from max_zimage.errors import RequestError, RequestWarning
from max_zimage.request.fields import FLAGS, ROWS
from max_zimage.request.kinds import Text, Texts

# How Python keeps bytes of the command line that are no text in its encoding.
_NO_TEXT = re.compile("[\udc80-\udcff]")


class BadInput(Exception):
    """What was asked for cannot be done; the message says why."""


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """Take a ValueError for what it is while input is being checked: the input's fault.

    Raises:
        BadInput: In its place, with the names of flags where it speaks of a request's fields.
    """
    try:
        yield
    except ValueError as error:
        raise BadInput(told(error)) from error


def check_texts(arguments: argparse.Namespace) -> None:
    """Refuse what stands for nothing and what is no text, before anything is done.

    An empty prompt is one: it draws what the model draws of itself. Names of files may be any bytes.

    Raises:
        BadInput: With the flag.
    """
    rows = [row for name, row in ROWS.items() if isinstance(row.kind, (Text, Texts)) and name != "template"]
    texts = {row.flag.destination for row in rows if row.flag}
    for name, value in vars(arguments).items():
        flag = {"source": "--from", "prompt": "the prompt", "input": "the input"}.get(
            name, "--" + name.replace("_", "-")
        )
        if name not in texts and (value == "" or (isinstance(value, list) and "" in value)):
            raise BadInput(f"{flag} is empty; give it a value, or leave it out")
        byte = _NO_TEXT.search(value) if name in texts and isinstance(value, str) else None
        if byte is not None:
            raise BadInput(
                f"{flag} is not text in {sys.getfilesystemencoding().upper()}, the encoding of this system: byte "
                f"0x{ord(byte[0]) - 0xDC00:02X} at character {byte.start()}; let the terminal or the script that it "
                "comes from write UTF-8, e.g. through `iconv -f LATIN1 -t UTF-8`"
            )


def told(problem: Exception | Warning) -> str:
    """An error or a warning with the names of flags, where it speaks of a request's fields."""
    if isinstance(problem, RequestError):
        return problem.said(FLAGS)
    return problem.problem.said(FLAGS) if isinstance(problem, RequestWarning) else str(problem)


def warn(message: str | Warning) -> None:
    """Tell of something that is not an error."""
    print(f"max-zimage: warning: {message if isinstance(message, str) else told(message)}", file=sys.stderr)


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
