"""Text and JSON of a checkpoint, read strictly: what is wrong with a file is said with its name and what to do.

A byte-order mark, which some editors write, is accepted and left out. What other readers take in silence is refused: a
key that stands twice, of which one value would be lost, and numbers that are none or that no float holds.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import NoReturn

from max_zimage.errors import CheckpointError

_REMEDY = "correct it, or fetch it again"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_KINDS = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}


class _Refused(ValueError):
    """Something in a JSON text, in words that follow the file's name."""


def read_text(file: Path) -> str:
    """Read a text file in UTF-8; line ends become newlines, as transformers reads its templates.

    Args:
        file: The file.

    Returns:
        What it holds, without a byte-order mark.

    Raises:
        CheckpointError: If it is absent, no file, unreadable, or not in UTF-8.
    """
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder where a file should be; fetch the checkpoint again")
    if file.exists() and not file.is_file():  # to open a pipe would wait for its other end
        raise CheckpointError(f"{file} is no regular file; fetch the checkpoint again")
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        is_there(file)
        raise CheckpointError(f"{file} is missing; fetch the checkpoint again") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "UTF-16" if data.startswith(_UTF16) else f"byte {error.start} is 0x{data[error.start]:02x}"
        raise CheckpointError(f"{file} is not UTF-8 text ({found}); save it as UTF-8, or fetch it again") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_object(file: Path) -> dict[str, object]:
    """Read a JSON object.

    Args:
        file: The file.

    Raises:
        CheckpointError: If it cannot be read as text, or holds anything but one JSON object whose keys are distinct and
            whose numbers are finite.
    """
    return parse_object(file, read_text(file))


def parse_object(file: Path, text: str) -> dict[str, object]:
    """Read a JSON object from what `read_text` returned; arguments and errors are those of `read_object`."""
    if not text.strip():
        raise CheckpointError(f"{file} is empty; fetch it again")
    try:
        content = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_no_number, parse_float=_finite, parse_int=_whole
        )
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is no JSON: {_what(text, error)}; {_REMEDY}") from error
    except _Refused as error:
        raise CheckpointError(f"{file} {error}; {_REMEDY}") from error
    except RecursionError as error:
        raise CheckpointError(f"{file} is nested too deeply; {_REMEDY}") from error
    if not isinstance(content, dict):
        kind = "null" if content is None else _KINDS[type(content)]
        raise CheckpointError(f"{file} must hold a JSON object, {{...}}, and holds {kind}; {_REMEDY}")
    return content


def shown(value: object) -> str:
    """A value as JSON has it, for a message: on one line, cut where long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain(key: str) -> str:
    """A key for a message: as it stands, unless a line would break at it."""
    return key if key.isprintable() and len(key) <= 80 else shown(key)


def _what(text: str, error: json.JSONDecodeError) -> str:
    before = text[: error.pos].rstrip()
    where = f"line {error.lineno}, column {error.colno}"
    if before.endswith(",") and text[error.pos : error.pos + 1] in ("}", "]"):
        return f"a comma stands before the closing {text[error.pos]} in {where}"
    if error.pos >= len(text.rstrip()):
        return f"it ends too early, in {where}"
    return f"{error.msg[:1].lower()}{error.msg[1:]} in {where}"


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise _Refused(f"holds the key {_cut(twice)!r} twice")
    return content


def _no_number(text: str) -> NoReturn:
    raise _Refused(f"holds {text}, which is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _Refused(f"holds {_cut(text)}, a number beyond what a float can hold")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:  # of more digits than Python reads
        raise _Refused(f"holds {_cut(text)}, a number of too many digits") from error


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def is_there(path: Path) -> bool:
    """Whether a file or folder has this name.

    Raises:
        CheckpointError: If it is a link to nothing, as a download that was cut off leaves in the hub's cache.
    """
    if path.exists():
        return True
    if path.is_symlink():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which is not there: the download did not end; download it again"
        )
    return False
