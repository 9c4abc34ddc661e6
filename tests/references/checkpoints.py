"""Copies of the embedded model to damage: weights are links, everything else is copied, the original stays whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from max_zimage.embedded import PATH as EMBEDDED

BOM = b"\xef\xbb\xbf"
JSON_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/generation_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "vae/config.json",
)
TEMPLATE = "tokenizer/chat_template.jinja"

Damage = Callable[[Path], None]


def copied(folder: Path) -> Path:
    """A copy of the embedded model in a folder that does not exist yet."""
    leave = shutil.ignore_patterns("samples", "README.md")
    return Path(shutil.copytree(EMBEDDED, folder, ignore=leave, copy_function=_copy))


def _copy(source: str, target: str) -> None:
    (os.link if source.endswith(".safetensors") else shutil.copyfile)(source, target)


def changed(model: Path, file: str, **changes: Any) -> Path:
    """Set keys of a JSON file; None removes one. Returns the model."""
    content = json.loads((model / file).read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    (model / file).write_text(json.dumps(content))
    return model


def _written(change: Callable[[bytes], bytes]) -> Damage:
    def damage(file: Path) -> None:
        file.write_bytes(change(file.read_bytes()))

    return damage


def _first_key(entry: bytes) -> Damage:
    return _written(lambda data: data.replace(b"{", b"{" + entry + b", ", 1))


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


HARMLESS: dict[str, Damage] = {
    "byte-order mark": _written(lambda data: BOM + data),
    "CRLF": _written(lambda data: data.replace(b"\n", b"\r\n")),
    "both": _written(lambda data: BOM + data.replace(b"\n", b"\r\n")),
}
"""What editors do to a text file; it must change nothing."""

DAMAGED: dict[str, tuple[Damage, str]] = {
    "empty": (_written(lambda data: b""), "is empty; fetch it again"),
    "blank": (_written(lambda data: b" \n"), "is empty; fetch it again"),
    "list": (_written(lambda data: b"[]"), "must hold a JSON object, {...}, and holds a list"),
    "null": (_written(lambda data: b"null"), "must hold a JSON object, {...}, and holds null"),
    "number": (_written(lambda data: b"3"), "must hold a JSON object, {...}, and holds a number"),
    "missing": (Path.unlink, "missing"),
    "folder": (_folder, "is a folder where a file should be"),
    "trailing comma": (
        _written(lambda data: data.rstrip()[:-1].rstrip() + b",\n}\n"),
        "is no JSON: a comma stands before the closing } in line",
    ),
    "cut off": (_written(lambda data: data[: data.rfind(b":") + 1]), "is no JSON: it ends too early, in line"),
    "Latin-1": (_first_key(b'"\xe9": 1'), "is not UTF-8 text (byte 2 is 0xe9)"),
    "UTF-16": (_written(lambda data: data.decode("latin-1").encode("utf-16")), "is not UTF-8 text (UTF-16)"),
    "twice": (_first_key(b'"x": 1, "x": 2'), "holds the key 'x' twice"),
    "NaN": (_first_key(b'"x": NaN'), "holds NaN, which is no JSON number"),
    "infinity": (_first_key(b'"x": -Infinity'), "holds -Infinity, which is no JSON number"),
    "1e400": (_first_key(b'"x": 1e400'), "holds 1e400, a number beyond what a float can hold"),
    "digits": (_first_key(b'"x": ' + b"9" * 5000), "a number of too many digits"),
    "deep": (_written(lambda data: b"[" * 100000), "is nested too deeply"),
}
"""What goes wrong with a JSON file, and what the error says behind the file's path."""
