"""The bodies of the OpenAI image routes: OpenAI's fields, and ours from the table beside them.

Every field is honoured, or refused by name where it has no meaning for this model. Ranges that depend on the checkpoint
or on the server's limits are checked later, by `max_zimage.request.request` and `max_zimage.serving.http.requests`.

Reference: OpenAI's Images API, create image and create image edit.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from max_zimage.request.fields import ROWS

Quality = Literal["auto", "low", "medium", "high", "standard", "hd"]
OutputFormat = Literal["png", "jpeg", "webp"]
Body = TypeVar("Body", bound="ImageRequest")


class ImageRequest(BaseModel):
    """What both routes take."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str | None, Field(description="What to show; features may stand in its place.")] = None
    model: Annotated[str | None, Field(description="The served model's name, or nothing.")] = None
    n: Annotated[int | None, Field(ge=1, description="Pictures; picture k has seed + k.")] = None
    size: Annotated[str | None, Field(description='"WIDTHxHEIGHT", or "auto": the checkpoint\'s.')] = None
    quality: Annotated[Quality | None, Field(description="low: half the steps; high, hd: twice as many.")] = None
    response_format: Annotated[Literal["b64_json", "url"] | None, Field(description="b64_json if not given.")] = None
    output_format: Annotated[OutputFormat | None, Field(description="png if not given.")] = None
    output_compression: Annotated[int | None, Field(ge=1, le=100, description="Quality of jpeg and webp.")] = None
    metadata: Annotated[bool | None, Field(description="false: the files carry pixels alone.")] = None
    background: Annotated[Literal["auto", "opaque"] | None, Field(description="Pictures are opaque.")] = None
    moderation: Annotated[None, Field(description="Not supported: nothing is moderated here.")] = None
    user: Annotated[str | None, Field(max_length=512, description="Goes into the server's log.")] = None
    stream: Annotated[bool | None, Field(description="Answer with server-sent events.")] = None
    partial_images: Annotated[int | None, Field(ge=0, le=3, description="Previews, with stream.")] = None
    progress: Annotated[bool | None, Field(description="Whether stream has an event for each step.")] = None


class EditRequest(ImageRequest):
    """Image-to-image, as JSON: images as data URLs. The same fields come as a form, with images as files."""

    image: Annotated[str | list[str], Field(description="A data URL, or a list of one.")]
    mask: Annotated[str | None, Field(description="A data URL: what is transparent is drawn anew.")] = None
    mask_image: Annotated[str | None, Field(description="A data URL: what is white is drawn anew.")] = None
    input_fidelity: Annotated[None, Field(description="Not supported: use strength.")] = None


def with_rows(base: type[Body], *, edits: bool) -> type[Body]:
    """A body with the fields of `max_zimage.request.fields` that are not OpenAI's.

    Args:
        base: What OpenAI's API has.
        edits: Whether what only edits take is among them.
    """
    fields: dict[str, Any] = {
        each.images.name: (
            Annotated[(each.kind.schema or each.kind.plain) | None, Field(description=each.images.description)],
            None,
        )
        for each in ROWS.values()
        if each.images is not None and each.images.description and (edits or not each.images.edits_only)
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
    """What a body says in fields that are not OpenAI's, by argument of `GenerationRequest.create`."""
    values = {
        name: getattr(body, row.images.name, None)
        for name, row in ROWS.items()
        if row.images is not None and row.images.description
    }
    return {name: value for name, value in values.items() if value is not None}
