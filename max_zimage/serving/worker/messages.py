"""What the worker tells the server about a request before its pictures are done, inside MAX's own output type.

MAX's worker answers with `GenerationOutput`s, of which only the last one is final. The ones before carry a message
here: JSON in a text content, and a preview as an image content behind it. A request that fails has no last one; why it
does is said in a message before the end.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from max.pipelines.context import GenerationStatus
from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.modeling.types import RequestID
from max.pipelines.request.open_responses import OutputImageContent, OutputTextContent


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a request is.

    Attributes:
        step: Steps done; 0 says that its work begins.
        steps: Steps in all.
        seconds: What it took so far, by stage; complete with the last step only.
        batch: Pictures that share the steps, those of other requests included.
        graphs: The worker's `max_zimage.compile.modules.counts`.
        embeddings: Its `max_zimage.text.kept_features.KeptFeatures.figures`; empty where it keeps none.
    """

    step: int
    steps: int
    seconds: Mapping[str, float]
    batch: int
    graphs: Mapping[str, int]
    embeddings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A small PNG of one unfinished picture.

    Attributes:
        picture: Which of the request's pictures.
        png: The file.
    """

    picture: int
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there will be no pictures.

    Attributes:
        code: A short name of the reason.
        message: For whoever asked.
    """

    code: str
    message: str


def failure_output(request: RequestID, failure: Failure) -> GenerationOutput:
    """Pack a failure for the way to the server."""
    text = text_content(json.dumps({"failure": asdict(failure)}))
    return GenerationOutput(request_id=request, final_status=GenerationStatus.ACTIVE, output=[text])


def text_content(text: str) -> OutputTextContent:
    """Text as a part of MAX's outputs."""
    return OutputTextContent(type="output_text", text=text, annotations=None, logprobs=None)


def progress_output(request: RequestID, progress: Progress, previews: Sequence[Preview] = ()) -> GenerationOutput:
    """Pack a message for the way to the server."""
    images = [
        OutputImageContent(
            type="output_image",
            image_data=base64.b64encode(preview.png).decode(),
            image_url=None,
            format=str(preview.picture),
            detail=None,
        )
        for preview in previews
    ]
    text = text_content(json.dumps(asdict(progress)))
    return GenerationOutput(request_id=request, final_status=GenerationStatus.ACTIVE, output=[text, *images])


def read_failure(output: GenerationOutput) -> Failure | None:
    """Unpack what `failure_output` packed; None for any other message."""
    said = json.loads(_text(output))
    return Failure(**said["failure"]) if "failure" in said else None


def read_progress(output: GenerationOutput) -> tuple[Progress, list[Preview]]:
    """Unpack what `progress_output` packed."""
    text, images = _text(output), output.output[1:]
    previews = [
        Preview(picture=int(image.format or 0), png=base64.b64decode(image.image_data or ""))
        for image in images
        if isinstance(image, OutputImageContent)
    ]
    return Progress(**json.loads(text)), previews


def _text(output: GenerationOutput) -> str:
    text = output.output[0]
    if not isinstance(text, OutputTextContent):
        raise ValueError(f"the worker's message begins with {type(text).__name__}, not with text")
    return text.text
