"""What features that a request brings decide of it, and what does not go with them.

What features were made by is part of the request, as if it had been given: pictures remember it. So it need not be
given again, and must not be given otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from max_zimage.errors import RequestError
from max_zimage.request.checks import Problems, shown
from max_zimage.request.feature_values import given_features
from max_zimage.request.fields import ROWS
from max_zimage.request.kinds import Text
from max_zimage.request.limits import Limits
from max_zimage.request.prompt_features import MadeBy

SETTINGS = (
    "system_prompt",
    "thinking_content",
    "assistant_content",
    "hidden_layer",
    "long_prompt_mode",
    "max_sequence_length",
)
"""Fields that features are made by, besides the prompts."""


def of_features(problems: Problems, given: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """What features that are given stand for, by argument of `GenerationRequest.create`; nothing without them.

    Args:
        problems: Gets what does not go with them.
        given: All arguments.
        limits: What the checkpoint can do at most.
    """
    if given["features"] is None:
        return {}
    found = problems.check((), given_features, "features", given["features"], limits)
    if not found:
        return {"features": None, "prompt": given["prompt"] or ""}  # so that no other message comes of it
    for other in ("prompt_embeds", "negative_prompt_embeds"):
        if given[other] is not None and (other == "prompt_embeds" or found[0].negative is not None):
            problems.check(None, _refuse_embeds, other)
    texts = [each.made_by for each in found]
    made = [each for each in texts if each is not None]
    values: dict[str, Any] = {"features": found, "prompt_embeds": None}
    values["prompt"] = [each.prompt if each else "" for each in texts]
    problems.check(None, _check_texts, "prompt", given["prompt"], [each.prompt if each else None for each in texts])
    if found[0].negative is not None:
        negatives = [(each.negative_prompt or "") if each else None for each in texts]
        problems.check(None, _check_texts, "negative_prompt", given["negative_prompt"], negatives)
        values |= {"negative_prompt": [each or "" for each in negatives], "negative_prompt_embeds": None}
    for name in SETTINGS:
        problems.check(None, _check_setting, name, given[name], made, len(made) == len(found), limits)
        values |= {name: getattr(made[0], name)} if made else {}
    return values


def _refuse_embeds(name: str) -> None:
    message = "{field} and {name[features]} exclude each other, got both; leave one out"
    raise RequestError.of(name, message)


def _check_texts(name: str, value: object, encoded: Sequence[str | None]) -> None:
    """Refuse other texts than those that were encoded."""
    texts = [value] * (len(encoded) if name == "negative_prompt" else 1) if isinstance(value, str) else value
    if value is None or (isinstance(texts, (list, tuple)) and [*texts] == [*encoded]):
        return
    if None in encoded:
        message = "{field} is given, and {name[features]} that do not say what they were made from; leave one out"
        raise RequestError.of(name, message)
    message = "{field} is {given}, and {name[features]} were made from {there}; leave one out"
    there = encoded[0] if len(encoded) == 1 else list(encoded)
    raise RequestError.of(name, message, given=shown(value), there=shown(there))


def _check_setting(name: str, value: object, made: Sequence[MadeBy], all_say: bool, limits: Limits) -> None:
    """Refuse another value than features were made with, and features that were made with several."""
    kind = ROWS[name].kind
    there = list(dict.fromkeys(getattr(each, name) for each in made))
    if len(there) > 1:
        message = "{field}: {name[features]} were made with several, {first} and {second}; draw them one by one"
        raise RequestError.of(name, message, first=_said(name, there[0]), second=_said(name, there[1]))
    if value is None:
        return
    if not all_say:
        message = "{field} is given, and {name[features]} that do not say what they were made with; leave one out"
        raise RequestError.of(name, message)
    checked = kind.check(name, value, limits)
    if checked != there[0]:
        message = "{field} is {given}, and {name[features]} were made with {there}; leave it out, or encode again"
        raise RequestError.of(name, message, given=_said(name, checked), there=_said(name, there[0]))


def _said(name: str, value: Any) -> object:
    """A setting for a message: texts in quotes and cut where long, words and numbers as they are written."""
    row = ROWS[name]
    if not isinstance(row.kind, Text):
        return row.kind.encode(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
