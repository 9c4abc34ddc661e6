"""What files say of themselves beside their tensors: kept through a conversion, with what was done added."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from max_zimage.version import __version__

DONE = "max_zimage.conversions"
"""Key of the list, in JSON, of what was done to a file, the last one at its end."""

_FRAMEWORK = "format"  # libraries of torch's world refuse safetensors files without it


def read_metadata(files: Sequence[Path]) -> dict[str, str]:
    """Texts that the files of a component hold; where two say different things the first one's stays."""
    found: dict[str, str] = {}
    for file in files:
        for key, text in _of_file(file).items():
            found.setdefault(key, text)
    return found


def written_metadata(kept: Mapping[str, str], done: Mapping[str, object], *, gguf: bool) -> dict[str, str]:
    """What the result says of itself.

    Args:
        kept: From the input.
        done: What was done this time.
        gguf: Whether the result is a GGUF file.
    """
    before: list[object] = []
    with contextlib.suppress(ValueError):
        listed = json.loads(kept.get(DONE, "[]"))
        before = listed if isinstance(listed, list) else []
    texts = {key: text for key, text in kept.items() if key not in (DONE, _FRAMEWORK)}
    texts[DONE] = json.dumps([*before, {"version": __version__, **done}])
    return texts if gguf else {_FRAMEWORK: "pt", **texts}


def _of_file(file: Path) -> dict[str, str]:
    with file.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    if is_gguf:
        return _of_gguf(file)
    with safe_open(file, framework="numpy") as opened:
        return dict(opened.metadata() or {})


def _of_gguf(file: Path) -> dict[str, str]:
    """Its texts, apart from those that every writer makes anew and from a tokenizer's."""
    from gguf import GGUFReader, GGUFValueType

    return {
        name: field.contents()
        for name, field in GGUFReader(file).fields.items()
        if field.types == [GGUFValueType.STRING]
        and name not in ("general.architecture", "general.type")
        and not name.startswith("tokenizer.")
    }
