"""A request as a JSON object, by which it travels to another process and comes back as it was.

Every number returns to the bit: Python writes a float in as many digits as tell it from all others. Arrays do not
belong into JSON and travel beside it. What is read here was checked when the request was made: its form is looked at,
its ranges are not, since they depend on a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from max_zimage.request.fields import ROWS
from max_zimage.request.request import GenerationRequest
from max_zimage.request.row import Row
from max_zimage.sampling.schedule import Schedule


class WireError(ValueError):
    """A JSON object that is no request's; the message says what is wrong with it."""


def to_wire(request: GenerationRequest) -> dict[str, object]:
    """The fields of a request that are no arrays, as JSON has them, by the attributes of `GenerationRequest`."""
    return {row.attribute: row.kind.encode(getattr(request, row.attribute)) for row in _rows(arrays=False)}


def arrays_of(request: GenerationRequest) -> dict[str, Any]:
    """The others: `image`, `latents` and features, as the request holds them; without those that it has not."""
    values = {row.attribute: getattr(request, row.attribute) for row in _rows(arrays=True)}
    return {name: value for name, value in values.items() if value is not None}


def of_wire(fields: Mapping[str, object], **arrays: Any) -> GenerationRequest:
    """Read what `to_wire` wrote.

    Args:
        fields: The JSON object.
        **arrays: What `arrays_of` has.

    Raises:
        WireError: If a field is missing, unknown or of another type.
    """
    rows, beside = {row.attribute: row for row in _rows(arrays=False)}, {row.attribute for row in _rows(arrays=True)}
    problems = [f"{name} is missing" for name in rows if name not in fields]
    problems += [f"{name} is unknown" for name in sorted((fields.keys() - rows) | (arrays.keys() - beside))]
    values: dict[str, Any] = dict.fromkeys(beside)
    for name in rows.keys() & fields.keys():
        try:
            values[name] = _decoded(rows[name], fields[name])
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise WireError(f"this is no request: {'; '.join(problems)}")
    return GenerationRequest(**values | arrays)


def to_text(request: GenerationRequest) -> str:
    """`to_wire` as JSON."""
    return json.dumps(to_wire(request), allow_nan=False)


def of_text(text: str, **arrays: Any) -> GenerationRequest:
    """`of_wire` of JSON; arguments and errors are the same."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise WireError(f"this is no request: it is no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise WireError(f"this is no request: a JSON object is wanted, got {type(fields).__name__}")
    return of_wire(fields, **arrays)


def sharing_key(request: GenerationRequest, plan: Schedule) -> str:
    """What requests must have in common to share a batch, as text that is compared as a whole.

    Args:
        request: One of them.
        plan: Its schedule: the noise levels that come of its steps, shift, strength and so on.
    """
    rows = [row for row in ROWS.values() if row.shared == "value"]
    shared = {row.argument: row.kind.encode(getattr(request, row.attribute)) for row in rows}
    shared["is_masked"] = request.is_masked
    shared["has_features"] = request.features is not None  # a batch has texts, or features
    shared["shift"] = plan.shift  # samplers that begin below 1 go by it, and not all levels show it
    return json.dumps([plan.sigmas.tobytes().hex(), shared])


def without_loras(key: str) -> str:
    """What of a `sharing_key` is left where each request may have adapters of its own."""
    levels, shared = json.loads(key)
    return json.dumps([levels, {name: value for name, value in shared.items() if name != "loras"}])


def _rows(*, arrays: bool) -> list[Row]:
    return [row for row in ROWS.values() if row.attribute and row.kind.is_array == arrays]


def _decoded(row: Row, value: object) -> Any:
    if value is None:
        if not row.is_optional:
            raise ValueError("must not be null")
        return None
    return row.kind.decode(value)
