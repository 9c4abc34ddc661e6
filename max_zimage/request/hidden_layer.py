"""Which hidden states of the text encoder a request is conditioned on, and how that is written.

    -5                one state
    -2:0.7,-5:0.3     several, each with its weight

Layers are counted as transformers' `hidden_states` are: -1 is the state behind the final norm, -2 the one before the
last layer, and so on down to the embeddings. Imports no numpy: the command line's help reads the table of fields.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

HiddenLayer = tuple[tuple[int, float], ...]
"""Layers, each once, counted from the end and the last one first, and the weight of each; one alone has weight 1."""

DEFAULT_HIDDEN_LAYER: HiddenLayer = ((-2, 1.0),)
"""What Z-Image was trained on."""


def written(layers: HiddenLayer) -> str:
    """The text that `pairs_of_text` reads."""
    if len(layers) == 1:
        return str(layers[0][0])
    return ",".join(f"{layer}:{weight!r}" for layer, weight in layers)


def pairs_of_text(text: str) -> Sequence[tuple[object, object]]:
    """Layers and their weights, as they are written; also as a JSON object.

    >>> pairs_of_text("-5"), pairs_of_text("-2:0.7,-5:0.3")
    ([(-5, 1.0)], [(-2, 0.7), (-5, 0.3)])

    Raises:
        ValueError: If the text says neither.
    """
    if text.lstrip().startswith("{"):
        return [(layer_of(layer), weight) for layer, weight in json.loads(text, object_pairs_hook=list)]
    if ":" not in text:
        return [(int(text), 1.0)]
    parts = [part.partition(":") for part in text.split(",")]
    return [(int(layer), float(weight)) for layer, _, weight in parts]


def layer_of(value: object) -> object:
    """The number of a layer, where it is written as the names of a JSON object are; the value itself if not."""
    try:
        return int(value) if isinstance(value, str) else value
    except ValueError:
        return value
