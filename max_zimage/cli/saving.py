"""Where pictures and latents of `max-zimage generate` go, and how they get there."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from max_zimage.errors import RequestError
from max_zimage.images.latents import check_latents_writable, save_latents
from max_zimage.images.save import FORMATS, ImageFileError, check_writable, next_free_paths, save_image
from max_zimage.images.texts import has_other_text
from max_zimage.images.xmp import Source, source_of
from max_zimage.request.features_file import check_features_writable
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.noise import image_seed

if TYPE_CHECKING:
    from max_zimage.pipeline.zimage import ZImagePipeline


def check_outputs(arguments: argparse.Namespace) -> None:
    """Fail now rather than after minutes of work if what is drawn cannot be saved.

    Raises:
        ImageFileError: If a file cannot be there.
        RequestError: If one set of latents is to make several pictures.
    """
    if arguments.latents_out is None:
        check_writable(Path(arguments.output or "zimage.png"))
    elif arguments.output is not None:
        raise RequestError("--latents-out: latents are saved in place of a picture; leave --output out")
    else:
        check_latents_writable(Path(arguments.latents_out))
    if arguments.latents_out is not None and arguments.no_metadata:
        raise RequestError("--no-metadata: latents carry none; leave it out")
    if arguments.save_embeddings is not None:
        if arguments.embeddings is not None:
            raise RequestError("--save-embeddings: the features of --embeddings are in a file; leave one out")
        check_features_writable(Path(arguments.save_embeddings))
    if arguments.latents_in is not None and arguments.count > 1:
        raise RequestError("--count: the latents of --latents-in make one picture; leave --count out")


@dataclass(frozen=True)
class Destination:
    """Where a command's pictures go, or their latents.

    Attributes:
        paths: Of each; none of these files exists yet.
        source: How the pictures come to be; None for files that say nothing.
    """

    paths: list[Path]
    source: Source | None

    @classmethod
    def of(cls, arguments: argparse.Namespace, request: GenerationRequest) -> Destination:
        """Read the flags."""
        source = None if arguments.no_metadata else source_of(request.image)
        return cls(paths_of(arguments, request), source)

    def doubts(self, parameters: GenerationParameters) -> list[str]:
        """What the files will not hold, in sentences."""
        kind = FORMATS.get(self.paths[0].suffix.lower(), "")
        if self.source is None or has_other_text(kind, parameters.to_json()):
            return []
        path = self.paths[0]
        return [f"{path}: a JPEG has no room for so long a text for other tools; it holds that of max_zimage alone"]

    def save(self, index: int, drawn: Any, parameters: GenerationParameters | None, problems: list[str]) -> Path:
        """Save the one picture of a call, or its latents; results and errors are those of `save_picture`.

        Args:
            index: Which of the command's.
            drawn: What the call returned.
            parameters: What it was drawn with, or None.
            problems: Gets a sentence if it is elsewhere.
        """
        path = self.paths[index]
        if path.suffix.lower() in FORMATS:
            return save_picture(drawn[0], path, parameters, problems, self.source)
        save_latents(drawn, path)
        return path


def save_features(pipeline: ZImagePipeline, request: GenerationRequest, arguments: argparse.Namespace) -> None:
    """Save the features that --save-embeddings asks for."""
    if arguments.save_embeddings is not None:
        from max_zimage.pipeline.encoding import features_of

        (features,) = features_of(pipeline, request)
        features.save(Path(arguments.save_embeddings))


def save_picture(
    pixels: npt.NDArray[np.uint8],
    path: Path,
    parameters: GenerationParameters | None,
    problems: list[str],
    source: Source | None = Source.MODEL,
) -> Path:
    """Save a picture, if need be elsewhere: what was drawn for minutes is not thrown away.

    Args:
        pixels: uint8 [height, width, 3].
        path: Where to.
        parameters: What it was drawn with, or None.
        problems: Gets a sentence if the picture is elsewhere.
        source: How it came to be; None for a file that says nothing.

    Returns:
        Where it is.

    Raises:
        ImageFileError: If it could be saved nowhere.
    """
    text = parameters.to_json() if parameters else ""
    try:
        save_image(pixels, path, text, source)
    except ImageFileError as error:
        (elsewhere,) = next_free_paths(Path(tempfile.gettempdir()) / path.with_suffix(".png").name, 1)
        try:
            save_image(pixels, elsewhere, text, source)
        except ImageFileError as other:
            raise ImageFileError(
                f"{error}; neither can it be saved elsewhere: {other}. `max-zimage generate` with the same flags"
                f"{f' and --seed {parameters.seed}' if parameters else ''} draws it again"
            ) from other
        problems.append(f"{error}; the picture is in {elsewhere}")
        return elsewhere
    return path


def paths_of(arguments: argparse.Namespace, request: GenerationRequest) -> list[Path]:
    """Where the pictures go, or their latents; none of these files exists yet."""
    if arguments.latents_out is not None:
        return next_free_paths(Path(arguments.latents_out), arguments.count)
    if arguments.output is not None:
        return next_free_paths(Path(arguments.output), arguments.count)
    seeds = [image_seed(request.seed or 0, index) for index in range(arguments.count)]
    return [next_free_paths(Path(f"zimage-{seed}.png"), 1)[0] for seed in seeds]
