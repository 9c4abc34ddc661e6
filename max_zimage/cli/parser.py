"""How arguments that cannot be parsed are told."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

_NOT_TAKEN = re.compile(r"invalid (\w+) value: ")
_HALF = re.compile(r"(invalid choice: '(?:float16|fp16|half)' \(.*\))")
_KINDS = {
    "int": "a whole number",
    "at_least_one": "a whole number of at least 1",
    "_not_negative": "a whole number of at least 0",
    "float": "a number",
    "of_flag": "a number, or several as in 4,2,0 or 7-12",
    "_seconds": "a number of seconds",
}

_SPELLINGS = re.compile(r"(?<=^argument )(-[^/:\s]+)(?:/-[^/:\s]+)+:")
"""What argparse calls a flag that can be spelled in several ways: all of them."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the names of functions."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end the process with 2."""
        # argparse says which function did not take a value.
        message = _SPELLINGS.sub(r"\1:", message)  # the first one says which
        message = _HALF.sub(r"\1; bfloat16 takes as much room", message)
        message = _NOT_TAKEN.sub(lambda found: f"must be {_KINDS.get(found[1], 'another value')}, got ", message)
        self.exit(2, f"max-zimage: error: {message} (see {self.prog} --help)\n")
