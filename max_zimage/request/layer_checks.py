"""Whether a hidden layer that a request names does anything."""

from __future__ import annotations

from max_zimage.errors import RequestError
from max_zimage.request.facts import RequestFacts
from max_zimage.request.hidden_layer import DEFAULT_HIDDEN_LAYER


def check_layers(asked: RequestFacts) -> None:
    """Refuse a layer that would do nothing."""
    if asked.prompt_embeds is not None and asked.hidden_layer != DEFAULT_HIDDEN_LAYER:
        message = (
            "{field} chooses among the text encoder's states, and {name[prompt_embeds]} are given in their place; "
        )
        raise RequestError.of("hidden_layer", message + "leave one out")
