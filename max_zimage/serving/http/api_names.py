"""What each API calls the fields of a request in error messages, and what these blame: looked up in the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from max.pipelines.request.provider_options import ImageProviderOptions

from max_zimage.errors import RequestError, Wording
from max_zimage.request import fields
from max_zimage.serving.errors import ApiError, bad_request
from max_zimage.serving.http.schema import EDIT


@dataclass(frozen=True, kw_only=True)
class ApiNames:
    """One API's names.

    Attributes:
        wording: For messages.
        blamed: Field -> what errors blame, where that is not what messages call it.
        known: The API's fields; what is none of them is not blamed.
        guides: How it says that a negative prompt shall count.
    """

    wording: Wording
    blamed: Mapping[str, str]
    known: frozenset[str]
    guides: str = "set guidance_scale or nag_scale above 0"

    def of(self, name: str) -> str:
        """What messages call a field."""
        return self.wording.names.get(name, name)

    def param(self, name: str) -> str | None:
        """What errors about a field blame: one of the API's own, or None."""
        found = self.blamed.get(name) or self.of(name)
        return found if found in self.known else None


IMAGES = ApiNames(
    wording=fields.IMAGES,
    blamed={name: row.images.param for name, row in fields.ROWS.items() if row.images},
    known=frozenset(EDIT.model_fields),
)
"""OpenAI's image routes."""

RESPONSES = ApiNames(
    wording=fields.RESPONSES,
    blamed={name: row.responses.param for name, row in fields.ROWS.items() if row.responses},
    known=frozenset({*ImageProviderOptions.model_fields, "model", "input", "input_image", "seed", "n", "metadata"}),
)
"""MAX's `/v1/responses`."""


def refused(error: Exception, names: ApiNames) -> ApiError:
    """The engine's complaint in an API's words, with the field of its first problem to blame."""
    if not isinstance(error, RequestError):
        return bad_request(str(error))
    blamed = error.problems[0].field
    return bad_request(error.said(names.wording), None if blamed is None else names.param(blamed))
