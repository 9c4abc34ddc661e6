"""Arguments that stand for others: tensors for arrays, a template for its texts, features for what made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from max_zimage.errors import CheckpointError, RequestError
from max_zimage.request import checks
from max_zimage.request.checks import Problems
from max_zimage.request.feature_settings import of_features
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.templates import Template
from max_zimage.request.tensors import with_arrays


def resolved(problems: Problems, given: Mapping[str, Any], limits: Limits, defaults: RequestDefaults) -> dict[str, Any]:
    """The arguments, with those that tensors, a template and features stand for."""
    found = with_arrays(given) | _of_template(problems, given, defaults)
    return found | of_features(problems, found, limits)


def _of_template(problems: Problems, given: Mapping[str, Any], defaults: RequestDefaults) -> dict[str, str]:
    """The texts of the template that is named, where no other text is given in their place."""

    def find(name: object) -> Template:
        if not isinstance(name, str):
            raise RequestError.of("template", "{field} must be a name, got {given}", given=checks.shown(name))
        try:
            return defaults.templates.find(name)
        except CheckpointError as error:
            raise RequestError.of("template", "{field}: {reason}", reason=error) from error

    if given["template"] is None:
        return {}
    found = problems.check(Template(name=""), find, given["template"])
    texts = {
        "system_prompt": found.system, "thinking_content": found.thinking, "assistant_content": found.assistant
    }  # fmt: skip
    return {name: text for name, text in texts.items() if given[name] is None}
