"""What each API calls the engine's arguments, for error messages and the field that they blame."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from max.pipelines.request.provider_options import ImageProviderOptions

from max_zimage.serving.errors import ApiError, bad_request
from max_zimage.serving.http.schema import EditRequest


@dataclass(frozen=True, kw_only=True)
class ApiNames:
    """One API's names.

    Attributes:
        renamed: The engine's word -> the API's word, in messages.
        blamed: A word of a message -> the field to blame, where that is not the word itself.
        fields: The API's fields; a word that is none of them blames nothing.
    """

    renamed: Mapping[str, str]
    blamed: Mapping[str, str]
    fields: frozenset[str]

    def of(self, name: str) -> str:
        """The API's word for one of the engine's."""
        return self.renamed.get(name, name)

    def field(self, word: str) -> str | None:
        """The field that a word of a message blames."""
        found = self.blamed.get(word, word)
        return found if found in self.fields else None


IMAGES = ApiNames(
    renamed={
        "num_inference_steps": "steps",
        "num_images_per_prompt": "n",
        "resize=True": "resize to true",
        "the request asks": "size asks",
        "ask for the image's size": "leave size out",
    },
    blamed={"height": "size", "width": "size"},
    fields=frozenset(EditRequest.model_fields),
)
"""OpenAI's image routes."""

RESPONSES = ApiNames(
    renamed={"num_inference_steps": "steps", "num_images_per_prompt": "num_images", "shift": "flow_shift"},
    blamed={"prompt": "input", "image": "input_image", "size": "width", "step_cache": "metadata"},
    fields=frozenset({*ImageProviderOptions.model_fields, "model", "input", "input_image", "seed", "n", "metadata"}),
)
"""MAX's `/v1/responses`."""


def refused(error: Exception, names: ApiNames) -> ApiError:
    """The engine's complaint in an API's words, with the first field that it speaks of."""
    message = str(error)
    for name, renamed in names.renamed.items():
        message = re.sub(rf"\b{name}\b", renamed, message)
    listed = re.search(r"^- (.*)", message, re.MULTILINE)
    first = listed[1] if listed else message
    word = re.search(r"no use for (\w+)", first) or re.match(r"(?:the )?(negative prompt|\w+)", first)
    return bad_request(message, names.field(word[1].replace(" ", "_")) if word else None)
