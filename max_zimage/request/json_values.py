"""What JSON may hold that nobody has checked: its types, numbers that are none here, and text that is none."""

from __future__ import annotations

import json
import math


def is_text(value: object) -> bool:
    """Whether all that JSON holds can be written as UTF-8; half of a letter, which it can name, is none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_sound(value: object) -> bool:
    """Whether numbers are such as parameters hold: JSON has larger ones, and Python's reads Infinity and NaN too."""
    if isinstance(value, (list, tuple, dict)):
        return all(map(is_sound, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, (int, float)) or abs(value) < (2**64 if isinstance(value, int) else math.inf)


def short(value: object) -> str:
    """A value as messages show it."""
    try:
        shown = repr(value)
    except RecursionError:
        shown = "lists in lists in lists"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def is_kind(value: object, kind: str) -> bool:
    """Whether a JSON value fits a field's annotation; true and false are no numbers."""
    if " | " in kind:
        return any(is_kind(value, each) for each in kind.split(" | "))
    if value is None or kind == "None":
        return value is None and kind == "None"
    base = kind
    if base.startswith("tuple["):
        item_kind = base.removeprefix("tuple[").removesuffix(", ...]")
        # A tuple is what stands for pictures from before the field.
        return isinstance(value, (list, tuple)) and all(is_kind(item, item_kind) for item in value)
    types: dict[str, tuple[type, ...]] = {
        "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "dict": (dict,)
    }  # fmt: skip
    return isinstance(value, types[base]) and isinstance(value, bool) == (base == "bool")
