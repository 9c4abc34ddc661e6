"""What files say of themselves beside their tensors: kept through a conversion, with what was done added."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

from max_zimage.checkpoint.tensors import Source
from max_zimage.version import __version__

DONE = "max_zimage.conversions"
"""Key of the list, in JSON, of what was done to a file, the last one at its end."""

_MADE_ANEW = ("general.architecture", "general.type", "tokenizer.")
"""Keys of GGUF that every writer says for itself, or that belong to a tokenizer, which is not written."""
_FRAMEWORK = "format"  # libraries of torch's world refuse safetensors files without it


def kept_metadata(source: Source) -> dict[str, str]:
    """Texts that the files of a component hold; where two say different things the first one's stays."""
    found: dict[str, str] = {}
    for texts in source.metadata.values():
        for key, text in texts.items():
            if isinstance(text, str) and not key.startswith(_MADE_ANEW):
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
