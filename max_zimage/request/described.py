"""What may be asked for, as data that a client can build a form from: made from the table of fields.

A field's value is described in the words of JSON Schema, with the ranges of the checkpoint at hand put in. Reference:
JSON Schema 2020-12, validation vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from max_zimage.request.fields import RequestFields
from max_zimage.request.kinds import Array, Cache, Choice, Kind, Number, Side, Switch, Whole
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.list_kinds import Levels, Margins, NumberOrMany, Pair, Wholes
from max_zimage.request.lora_fields import Loras
from max_zimage.request.row import Of, Row
from max_zimage.request.shift_fields import Inner
from max_zimage.sampling.step_cache import METHODS, OFF

_SIDE = 16


def schema_of(kind: Kind, limits: Limits) -> dict[str, Any]:
    """What a field of a kind may hold.

    Args:
        kind: The kind.
        limits: Of the checkpoint.

    Returns:
        JSON Schema: type, enum, minimum, exclusiveMinimum, maximum, exclusiveMaximum, multipleOf, items, minItems,
        maxItems; true and false are an enum where to say neither is a third. Beside it "usual", the usual values of a
        number in words, and "words", beginnings of a text that stand for something.
    """
    if isinstance(kind, Side):
        most = kind.limit if isinstance(kind.limit, int) else getattr(limits, kind.limit)
        return {"type": "integer", "minimum": _SIDE, "maximum": most, "multipleOf": _SIDE}
    if isinstance(kind, Whole):
        most = kind.high if isinstance(kind.high, int) else getattr(limits, kind.high)
        return {"type": "integer", "minimum": kind.low, "maximum": most}
    if isinstance(kind, Inner):
        return {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    if isinstance(kind, Number):
        return _number(kind)
    if isinstance(kind, Choice):
        return {"type": "string", "enum": list(kind.words)}
    if isinstance(kind, Cache):
        return {"type": "string", "words": [OFF, *METHODS]}
    if isinstance(kind, (Pair, Margins, Wholes)):
        return _several(kind, limits)
    if isinstance(kind, Levels):
        return {"type": "array", "items": {"type": "number"}}
    if isinstance(kind, Loras):
        parts = {"name": {"type": "string", "enum": list(limits.lora_files.names())}, "scale": {"type": "number"}}
        return {"type": "array", "items": {"type": "object", "properties": parts}}
    if isinstance(kind, Array):
        return {"type": "string", "format": "binary"}
    if isinstance(kind, Switch):
        return {"type": "boolean"} | ({"enum": [True, False]} if kind.is_left_to_checkpoint else {})
    return {"type": "string"}


def default_of(row: Row, limits: Limits, defaults: RequestDefaults) -> Any:
    """What stands where nothing is given, as JSON has it; None where that is nothing, or random."""
    if row.default is None or row.kind.is_array:
        return None
    value = row.default
    if isinstance(value, Of):
        value = getattr(defaults if hasattr(defaults, value.attribute) else limits, value.attribute)
    return row.kind.keep(value)


def section_of(row: Row) -> str:
    """The part of the table that a field stands in, such as "guidance" or "dype", by the class that declares it."""
    for cls in RequestFields.__mro__:
        if row.attribute and row.attribute in vars(cls).get("__annotations__", {}):
            return cls.__name__.removesuffix("Fields").lower()
    return "" if row.flag is None or row.flag.group is None else row.flag.group


def of_parameters(parameters: Mapping[str, Any], rows: Mapping[str, Row]) -> dict[str, Any]:
    """The parameters of a picture that say something: without what is the same for every request that is silent.

    Args:
        parameters: A picture's, by field.
        rows: Of the table.
    """
    found = {name: value for name, value in parameters.items() if name in rows and value is not None}
    return {name: value for name, value in found.items() if not _is_usual(rows[name], value)}


def _is_usual(row: Row, value: Any) -> bool:
    """Whether a value is what stands where nothing is given, whatever the checkpoint."""
    if value in ("", (), []):
        return True
    if row.default is None or isinstance(row.default, Of):
        return False
    usual = row.kind.keep(row.default)
    return bool(value == (tuple(usual) if isinstance(usual, list) else usual))


def _number(kind: Number) -> dict[str, Any]:
    low = 0.0 if kind.low is None else kind.low
    found: dict[str, Any] = {"type": "number", "exclusiveMinimum" if kind.above and not low else "minimum": low}
    found |= {} if kind.high is None else {"maximum": kind.high}
    found |= {"usual": kind.usual} if kind.usual else {}
    return found | ({"many": True} if isinstance(kind, NumberOrMany) else {})


def _several(kind: Pair | Margins | Wholes, limits: Limits) -> dict[str, Any]:
    if isinstance(kind, Wholes):
        return {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": getattr(limits, kind.limit) - 1}}
    count = 2 if isinstance(kind, Pair) else 4
    items = {"type": "number", "minimum": 0, "maximum": 1} if count == 2 else {"type": "integer", "minimum": 0}
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}
