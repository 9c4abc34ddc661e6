"""Checks of features that a request brings; see `max_zimage.request.prompt_features`."""

from __future__ import annotations

from max_zimage.errors import Item, RequestError
from max_zimage.request.checks import array, shown
from max_zimage.request.limits import Limits
from max_zimage.request.prompt_features import PromptFeatures

_ENCODERS = {
    1024: "Qwen3-0.6B",
    2048: "Qwen3-1.7B",
    2560: "Qwen3-4B, which Z-Image has",
    3584: "Qwen2.5-VL-7B",
    4096: "Qwen3-8B, or T5-XXL",
    5120: "Qwen3-14B",
}
"""Width of features -> text encoders that make them so wide."""


def given_features(name: str, value: object, limits: Limits) -> tuple[PromptFeatures, ...]:
    """Return features that the checkpoint can be drawn from.

    Args:
        name: The field.
        value: One of `PromptFeatures`, or several.
        limits: What the checkpoint can do at most.

    Raises:
        RequestError: If they are something else, of another width, or too many rows; or if some have negative features
            and others do not.
    """
    items = (value,) if isinstance(value, PromptFeatures) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(each, PromptFeatures) for each in items):
        message = "{field} must be PromptFeatures, or a list of them, got {given}; PromptFeatures.load reads a file"
        raise RequestError.of(name, message, given=shown(value))
    if not 1 <= len(items) <= limits.max_images:
        message = "{field} must be of 1 to {most} prompts, got {given}"
        raise RequestError.of(name, message, most=limits.max_images, given=len(items))
    for index, each in enumerate(items):
        _check(Item(name, f" {index}" if len(items) > 1 else ""), each, limits)
    if len({each.negative is None for each in items}) > 1:
        message = "{field}: some have features of a negative prompt and others do not; encode all of them alike"
        raise RequestError.of(name, message)
    return tuple(items)


def _check(item: Item, features: PromptFeatures, limits: Limits) -> None:
    for each in (features.positive, features.negative):
        if each is not None:
            array(item, each, (None, None), "[tokens, width]")
    rows, width = features.positive.shape
    if width != limits.caption_dim:
        of = f" ({_ENCODERS[width]})" if width in _ENCODERS else ""
        message = "{field} have the width {given}{of}, and this checkpoint takes {width}; encode with its own"
        raise RequestError.of(item, message, given=width, of=of, width=limits.caption_dim)
    rows = max(rows, 0 if features.negative is None else len(features.negative))
    if rows > limits.max_tokens:
        message = "{field} have {given} tokens, at most {most} are supported; encode with a {name[long_prompt_mode]}"
        raise RequestError.of(item, message, given=rows, most=limits.max_tokens)
