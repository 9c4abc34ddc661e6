"""Where pictures and latents of `max-zimage generate` go, and how they get there."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from max_zimage.errors import RequestError
from max_zimage.images.latents import check_latents_writable, save_latents
from max_zimage.images.save import ImageFileError, check_writable, next_free_paths, save_image
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
    if arguments.save_embeddings is not None:
        if arguments.embeddings is not None:
            raise RequestError("--save-embeddings: the features of --embeddings are in a file; leave one out")
        check_features_writable(Path(arguments.save_embeddings))
    if arguments.latents_in is not None and arguments.count > 1:
        raise RequestError("--count: the latents of --latents-in make one picture; leave --count out")


def save_features(pipeline: ZImagePipeline, request: GenerationRequest, arguments: argparse.Namespace) -> None:
    """Save the features that --save-embeddings asks for."""
    if arguments.save_embeddings is not None:
        from max_zimage.pipeline.encoding import features_of

        (features,) = features_of(pipeline, request)
        features.save(Path(arguments.save_embeddings))


def save(
    drawn: Any, output_type: str, path: Path, parameters: GenerationParameters | None, problems: list[str]
) -> Path:
    """Save the one picture of a call, or its latents; arguments and errors are those of `save_picture`."""
    if output_type != "latent":
        return save_picture(drawn[0], path, parameters, problems)
    save_latents(drawn, path)
    return path


def save_picture(
    pixels: npt.NDArray[np.uint8], path: Path, parameters: GenerationParameters | None, problems: list[str]
) -> Path:
    """Save a picture, if need be elsewhere: what was drawn for minutes is not thrown away.

    Args:
        pixels: uint8 [height, width, 3].
        path: Where to.
        parameters: What it was drawn with, or None.
        problems: Gets a sentence if the picture is elsewhere.

    Returns:
        Where it is.

    Raises:
        ImageFileError: If it could be saved nowhere.
    """
    text = parameters.to_json() if parameters else ""
    try:
        save_image(pixels, path, text)
    except ImageFileError as error:
        (elsewhere,) = next_free_paths(Path(tempfile.gettempdir()) / path.with_suffix(".png").name, 1)
        try:
            save_image(pixels, elsewhere, text)
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
