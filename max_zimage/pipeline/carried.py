"""What pictures of a call carry into their files: the parameters they were drawn with, and what made them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from max_zimage.device.devices import device_kind
from max_zimage.images.texts import save_options
from max_zimage.images.xmp import source_of
from max_zimage.request.loras import Lora
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.request import GenerationRequest

_KINDS = frozenset({"PNG", "JPEG", "WEBP"})


@dataclass(frozen=True, eq=False)
class Carried:
    """What is known of a call's pictures.

    Attributes:
        request: The call's.
        drawn_by: Arguments of `GenerationParameters.of` that name the model and how it ran.
        is_whole: Whether the request says all of the pictures: a callback may have changed latents.
        is_usual: Whether files say it where nobody says whether they are to.
        loras: Adapters of each picture, where these differ; empty where the request says them.
    """

    request: GenerationRequest
    drawn_by: dict[str, Any]
    is_whole: bool
    is_usual: bool = True
    loras: tuple[tuple[Lora, ...], ...] = ()

    def parameters(self, picture: int) -> GenerationParameters | None:
        """Of one picture; None where they would not draw it again.

        Args:
            picture: Which of the call's.
        """
        if not self.is_whole or not self.request.is_repeatable or self.request.seed is None:
            return None
        request = replace(self.request, loras=self.loras[picture]) if self.loras else self.request
        return GenerationParameters.of(request, **self.drawn_by, picture=picture)

    def save_options(self, file: object, format: str | None, picture: int) -> dict[str, Any]:
        """Options of `PIL.Image.Image.save`; none for formats that hold no such texts.

        Args:
            file: Where the picture goes.
            format: As Pillow takes it.
            picture: Which of the call's.
        """
        suffix = Path(os.fspath(file)).suffix.lower() if isinstance(file, (str, os.PathLike)) else ""
        kind = (format or Image.registered_extensions().get(str(suffix), "")).upper().replace("JPG", "JPEG")
        found = self.parameters(picture) if kind in _KINDS else None
        text = found.to_json() if found else ""
        return save_options(kind, text, source_of(self.request.image)) if kind in _KINDS else {}


def of_call(pipeline: Any, request: GenerationRequest, *, is_whole: bool) -> Carried:
    """What the files of a call's pictures are to say; a method of pipelines.

    Args:
        pipeline: A `ZImagePipeline`, which draws them.
        request: The call's.
        is_whole: Whether it says all of the pictures.
    """
    model, weight_paths = pipeline.named
    drawn_by = {"model": model, "weight_paths": weight_paths, "dtype": pipeline.sources.dtypes["transformer"]}
    drawn_by |= {"device": device_kind(pipeline.devices[0]), "quantize": pipeline.sources.quantize}
    drawn_by["attention_backend"] = pipeline.sources.attention_backend
    return Carried(request, drawn_by, is_whole and bool(model), pipeline.metadata)
