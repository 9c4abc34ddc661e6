"""The bodies of the OpenAI image routes: OpenAI's fields, and ours beside them.

Every field is honoured, or refused by name where it has no meaning for this model. Ranges that depend on the checkpoint
or on the server's limits are checked later, by `max_zimage.request.request` and `max_zimage.serving.http.requests`.

Reference: OpenAI's Images API, create image and create image edit.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Quality = Literal["auto", "low", "medium", "high", "standard", "hd"]
OutputFormat = Literal["png", "jpeg", "webp"]


class ImageRequest(BaseModel):
    """What both routes take."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str, Field(description="What to show.")]
    model: Annotated[str | None, Field(description="The served model's name, or nothing.")] = None
    n: Annotated[int | None, Field(ge=1, description="Pictures; picture k has seed + k.")] = None
    size: Annotated[str | None, Field(description='"WIDTHxHEIGHT", or "auto": the checkpoint\'s.')] = None
    quality: Annotated[Quality | None, Field(description="low: half the steps; high, hd: twice as many.")] = None
    response_format: Annotated[Literal["b64_json", "url"] | None, Field(description="b64_json if not given.")] = None
    output_format: Annotated[OutputFormat | None, Field(description="png if not given.")] = None
    output_compression: Annotated[int | None, Field(ge=1, le=100, description="Quality of jpeg and webp.")] = None
    background: Annotated[Literal["auto", "opaque"] | None, Field(description="Pictures are opaque.")] = None
    moderation: Annotated[None, Field(description="Not supported: nothing is moderated here.")] = None
    user: Annotated[str | None, Field(max_length=512, description="Goes into the server's log.")] = None
    stream: Annotated[bool | None, Field(description="Answer with server-sent events.")] = None
    partial_images: Annotated[int | None, Field(ge=0, le=3, description="Previews, with stream.")] = None
    progress: Annotated[bool | None, Field(description="Whether stream has an event for each step.")] = None

    negative_prompt: Annotated[str | None, Field(description="What to keep away from; needs guidance.")] = None
    steps: Annotated[int | None, Field(description="Denoising steps.")] = None
    guidance_scale: Annotated[float | None, Field(description="0 is off; the checkpoint's if not given.")] = None
    cfg_normalization: Annotated[float | None, Field(description="Limit of guidance's growth; 0 is none.")] = None
    cfg_truncation: Annotated[float | None, Field(description="No guidance above this time in [0, 1].")] = None
    shift: Annotated[float | None, Field(description="In place of the schedule's shift.")] = None
    step_cache: Annotated[str | None, Field(description="off, first_block:NAME=VALUE,... or taylorseer:...")] = None
    seed: Annotated[int | None, Field(description="Draws the noise; a random one if not given.")] = None


class EditRequest(ImageRequest):
    """Image-to-image, as JSON: images as data URLs. The same fields come as a form, with images as files."""

    image: Annotated[str | list[str], Field(description="A data URL, or a list of one.")]
    strength: Annotated[float | None, Field(description="How far from the image, in (0, 1]; 0.6 if not given.")] = None
    resize: Annotated[bool | None, Field(description="Whether the image may be resized to the size asked for.")] = None
    mask: Annotated[None, Field(description="Not supported: the whole image is drawn again.")] = None
    input_fidelity: Annotated[None, Field(description="Not supported: use strength.")] = None
