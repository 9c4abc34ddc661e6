"""Checks of hidden layers and their weights; see `max_zimage.request.hidden_layer`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from max_zimage.errors import Item, RequestError
from max_zimage.request.checks import Problems, shown
from max_zimage.request.hidden_layer import HiddenLayer, layer_of, pairs_of_text
from max_zimage.request.limits import Limits

MAX_SHARE = 1000.0
"""What a weight may be of the sum of all: weights that cancel leave the rounding errors of what they cancel."""


def hidden_layer(name: str, value: object, limits: Limits) -> HiddenLayer:
    """Return layers and weights: of a layer, of weights by layer, or of what is written for either.

    Args:
        name: The field.
        value: A whole number, a mapping, a text as `max_zimage.request.hidden_layer` has it, or what this returns.
        limits: How many layers there are, and whether there is a norm behind them.

    Raises:
        RequestError: With every problem found.
    """
    problems = Problems()
    checked = [problems.check(None, _pair, name, pair, limits) for pair in _pairs(name, value, limits)]
    problems.raise_if_any()
    pairs = sorted((pair for pair in checked if pair is not None), reverse=True)
    layers = [layer for layer, _ in pairs]
    if twice := [layer for layer in layers if layers.count(layer) > 1]:
        message = "{field} names layer {layer} more than once; add up its weights"
        raise RequestError.of(name, message, layer=twice[0])
    total = sum(weight for _, weight in pairs)
    if not 0 < total < math.inf:
        message = "{field}: the weights must add up to a finite number above 0, got {total:g}"
        raise RequestError.of(name, message, total=total)
    worst = max(abs(weight) for _, weight in pairs)
    if worst > MAX_SHARE * total:
        message = "{field}: a weight may be {most:g} times the sum of all at most, got {worst:g} of {total:g}"
        raise RequestError.of(name, message, most=MAX_SHARE, worst=worst, total=total)
    kept = tuple((layer, weight) for layer, weight in pairs if weight)
    return ((kept[0][0], 1.0),) if len(kept) == 1 else kept


def decoded(text: str) -> HiddenLayer:
    """What `max_zimage.request.hidden_layer.written` wrote.

    Raises:
        ValueError: If it cannot have written this.
    """
    try:
        found = [(layer, weight) for layer, weight in pairs_of_text(text) if isinstance(layer, int)]
    except ValueError:
        found = []
    pairs = tuple((layer, weight) for layer, weight in found if isinstance(weight, float))
    if not pairs or len(pairs) < len(found) or not all(math.isfinite(weight) for _, weight in pairs):
        raise ValueError(f"must be layers with their weights, got {text!r}")
    return pairs


def _pairs(name: str, value: object, limits: Limits) -> Sequence[tuple[object, object]]:
    """Layers and weights as they were given."""
    found: Sequence[tuple[object, object]] = ()
    if isinstance(value, str):
        try:
            found = pairs_of_text(value)
        except (ValueError, TypeError, RecursionError):
            found = ()
    elif isinstance(value, Mapping):
        found = [(layer_of(layer), weight) for layer, weight in value.items()]
    elif isinstance(value, (list, tuple)) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value):
        found = [(pair[0], pair[1]) for pair in value]
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        found = [(value, 1.0)]
    if len(found) > limits.text_layers + 1:
        message = "{field} names {given} layers, and the text encoder has {states} states; name each once"
        raise RequestError.of(name, message, given=len(found), states=limits.text_layers + 1)
    if found:
        return found
    message = "{field} must be a layer from {low} to {high}, or weights by layer such as -2:0.7,-5:0.3, got {given}"
    layers = limits.text_layers
    raise RequestError.of(name, message, low=-layers - 1, high=layers, given=shown(value))


def _pair(name: str, pair: tuple[object, object], limits: Limits) -> tuple[int, float]:
    """One layer, counted from the end, and its weight."""
    layer, weight = pair
    states = limits.text_layers + 1
    if isinstance(layer, (bool, np.bool_)) or not isinstance(layer, (int, np.integer)):
        message = "{field}: a layer must be a whole number from {low} to {high}, got {given}"
        raise RequestError.of(name, message, low=-states, high=states - 1, given=shown(layer))
    if not -states <= layer < states:
        message = "{field} must be from {low} to {high}, for the text encoder has {layers} layers, got {given}"
        raise RequestError.of(name, message, low=-states, high=states - 1, layers=states - 1, given=int(layer))
    at = int(layer) % states - states
    if at == -1 and not limits.has_final_norm:
        message = (
            "{field} {given} is the state behind the final norm, which the checkpoint's text encoder does not have; "
        )
        raise RequestError.of(name, message + "take -2 or a lower one", given=int(layer))
    is_number = isinstance(weight, (int, float, np.integer, np.floating)) and not isinstance(weight, bool)
    try:
        value = float(weight) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:  # a whole number beyond what a float can hold
        value = math.inf
    if not math.isfinite(value):
        message = "{field} must be a finite number, got {given}"
        raise RequestError.of(Item(name, f"[{int(layer)}]"), message, given=shown(weight))
    return at, value
