"""The bodies of the OpenAI image routes: OpenAI's fields, and ours from the table beside them.

Every field is honoured, or refused by name where it has no meaning for this model. Ranges that depend on the checkpoint
or on the server's limits are checked later, by `max_zimage.request.request` and `max_zimage.serving.http.requests`.

Reference: OpenAI's Images API, create image and create image edit.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from max_zimage.request.fields import ROWS
from max_zimage.request.row import Images
from max_zimage.serving.errors import bad_request

Quality = Literal["auto", "low", "medium", "high", "standard", "hd", "xhigh", "max"]
OutputFormat = Literal["png", "jpeg", "webp"]
Body = TypeVar("Body", bound="ImageRequest")


class ImageRequest(BaseModel):
    """What both routes take."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str | None, Field(description="What to show; features may stand in its place.")] = None
    model: Annotated[str | None, Field(description="The served model's name, or nothing.")] = None
    n: Annotated[int | None, Field(ge=1, description="Pictures; picture k has seed + k.")] = None
    size: Annotated[str | None, Field(description='"WIDTHxHEIGHT", or "auto": the checkpoint\'s.')] = None
    quality: Annotated[
        Quality | None, Field(description="low: half the steps; high, hd: twice as many; xhigh: 3 times; max: 4 times.")
    ] = None
    response_format: Annotated[Literal["b64_json", "url"] | None, Field(description="b64_json if not given.")] = None
    output_format: Annotated[OutputFormat | None, Field(description="png if not given.")] = None
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="Quality of jpeg and webp; 100 if not given, webp without loss.")
    ] = None
    metadata: Annotated[bool | None, Field(description="false: the files carry pixels alone.")] = None
    background: Annotated[Literal["auto", "opaque"] | None, Field(description="Pictures are opaque.")] = None
    moderation: Annotated[
        Literal["auto", "low"] | None, Field(description="Changes nothing: nothing is moderated here.")
    ] = None
    style: Annotated[
        Literal["vivid", "natural"] | None, Field(description="Sent by older clients; changes nothing.")
    ] = None
    user: Annotated[str | None, Field(max_length=512, description="Goes into the server's log.")] = None
    safety_identifier: Annotated[str | None, Field(max_length=512, description="The same, by its newer name.")] = None
    stream: Annotated[bool | None, Field(description="Answer with server-sent events.")] = None
    partial_images: Annotated[int | None, Field(ge=0, le=3, description="Previews, with stream.")] = None
    progress: Annotated[bool | None, Field(description="Whether stream has an event for each step.")] = None

    @property
    def caller(self) -> str | None:
        """Who asks, for the log; None if nobody is named."""
        return ", ".join(dict.fromkeys(filter(None, (self.user, self.safety_identifier)))) or None


class EditRequest(ImageRequest):
    """Image-to-image, as JSON: images as data URLs. The same fields come as a form, with images as files."""

    image: Annotated[str | list[str], Field(description="A data URL, or a list of one.")]
    mask: Annotated[str | None, Field(description="A data URL: what is transparent is drawn anew.")] = None
    mask_image: Annotated[str | None, Field(description="A data URL: what is white is drawn anew.")] = None
    input_fidelity: Annotated[
        Literal["low"] | None, Field(description="Its default, which changes nothing; use strength for more.")
    ] = None


def with_rows(base: type[Body], *, edits: bool) -> type[Body]:
    """A body with the fields of `max_zimage.request.fields` that are not OpenAI's.

    Args:
        base: What OpenAI's API has.
        edits: Whether what only edits take is among them.
    """
    fields: dict[str, Any] = {
        name: (
            Annotated[(each.kind.schema or each.kind.plain) | None, Field(description=each.images.description)],
            None,
        )
        for each in ROWS.values()
        if each.images is not None and each.images.description and (edits or not each.images.edits_only)
        for name in (each.images.name, *each.images.others)
    }
    return create_model(base.__name__, __base__=base, __module__=__name__, __doc__=base.__doc__, **fields)


GENERATION: type[ImageRequest] = with_rows(ImageRequest, edits=False)
EDIT: type[EditRequest] = with_rows(EditRequest, edits=True)
"""The bodies as the routes take them."""

TEXTS = frozenset(
    name
    for name, schema in EDIT.model_json_schema()["properties"].items()
    if any(each.get("type") == "string" for each in schema.get("anyOf", [schema]))
)
"""Fields that are text, whatever it looks like: in a form everything is."""


LISTS = {
    row.images.name: row.kind for row in ROWS.values() if row.images and row.images.description and row.kind.schema
}
"""Fields that may be lists, by what reads them where there is only text."""


def given(body: ImageRequest) -> dict[str, Any]:
    """What a body says in fields that are not OpenAI's, by argument of `GenerationRequest.create`.

    Raises:
        ApiError: 400 if it says two things of one, by its name and by another.
    """
    values = {
        name: _said(body, row.images) for name, row in ROWS.items() if row.images is not None and row.images.description
    }
    return {name: value for name, value in values.items() if value is not None}


def _said(body: ImageRequest, field: Images) -> Any:
    """What a body says in a field, by whichever of its names."""
    value = getattr(body, field.name, None)
    for name in field.others:
        other = getattr(body, name, None)
        if value is not None and other is not None and value != other:
            message = (
                f"{name}: another name of {field.name}, and they are {other} and {value}; leave one of the two out"
            )
            raise bad_request(message, name)
        value = other if value is None else value
    return value
