"""What `max-zimage generate` is asked to draw: flags, and under them the parameters in a picture to be repeated."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from max_zimage import embedded
from max_zimage.cli.common import DEFAULT_PROMPT
from max_zimage.cli.field_flags import flag_value
from max_zimage.cli.given_features import doubts_of_features, given_features
from max_zimage.cli.repeating import without_replaced
from max_zimage.cli.start_loras import found_loras, wanted_loras
from max_zimage.cli.start_pictures import start_image, start_mask
from max_zimage.images.latents import read_latents
from max_zimage.request.fields import ROWS
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.metadata import UNKNOWN_IMAGE, GenerationParameters
from max_zimage.request.other_tools import OtherParameters, read_any
from max_zimage.request.prompt_features import PromptFeatures
from max_zimage.request.request import GenerationRequest

if TYPE_CHECKING:
    from max_zimage.device.dtypes import ModelDtype

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What is asked for.

    Attributes:
        values: Arguments of `GenerationRequest.create`; None leaves a choice to the checkpoint.
        model: Checkpoint, as it was named.
        weight_paths: Weight files in place of its own.
        dtype: "auto", "bfloat16" or "float32".
        quantize: Which components keep quantized weights, and how; None where nothing says so.
        attention: How attention is computed; None where nothing says so.
        drawn_on: The device that the picture to be repeated was drawn on, where it says so.
        doubts: What may make it another picture, in sentences.
    """

    values: Mapping[str, Any]
    model: str
    weight_paths: tuple[str, ...]
    dtype: str
    quantize: str | None
    attention: str | None
    drawn_on: str | None
    doubts: tuple[str, ...]

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> GenerateOptions:
        """Read the flags, and under them the picture of --from.

        Raises:
            ImageFileError: If that is no picture, or holds no parameters; or if --embeddings is no file of features.
            RequestError: If the image to begin with, its mask or an adapter cannot be read, or are not those that the
                picture was drawn with.
        """
        found = None if arguments.source is None else read_any(Path(arguments.source), _named(arguments))
        saved = found if isinstance(found, GenerationParameters) else None
        other = found if isinstance(found, OtherParameters) else None
        features = given_features(arguments)
        # Another model's weight files have no place in the one that is named now.
        weights = () if saved is None or arguments.model is not None else saved.weight_paths
        return cls(
            values=_values(arguments, saved, other, features),
            model=_first(arguments.model, saved and saved.model, embedded.NAME),
            weight_paths=tuple(arguments.weight_path) or weights,
            dtype=_first(arguments.dtype, saved and saved.dtype, "auto"),
            quantize=_first(arguments.quantize, saved and saved.quantize, None),
            attention=_first(arguments.attention_backend, saved and saved.attention_backend, None),
            drawn_on=None if saved is None else saved.device,
            doubts=_doubts(arguments, saved)
            + (() if other is None else other.notes)
            + doubts_of_features(arguments, saved, features),
        )

    def request(self, limits: Limits, defaults: RequestDefaults) -> GenerationRequest:
        """The request for the first picture.

        Args:
            limits: What the checkpoint can do at most.
            defaults: What it does where nothing is asked for.

        Raises:
            RequestError: With all that is out of range.
        """
        return GenerationRequest.create(limits=limits, defaults=defaults, **self.values, output_type="np")

    @property
    def model_path(self) -> str | None:
        """The model as `ZImagePipeline.from_pretrained` takes it."""
        return model_path(self.model)


def model_path(name: str | None) -> str | None:
    """A model's name on the command line, as `ZImagePipeline.from_pretrained` takes it: None is the embedded one."""
    return None if name == embedded.NAME else name


def parameters_of(
    request: GenerationRequest,
    wanted: GenerateOptions,
    dtype: ModelDtype,
    device: str,
    quantize: str,
    attention: str,
) -> GenerationParameters:
    """What a picture remembers.

    Args:
        request: The request of this picture alone.
        wanted: Names the model and its weight files.
        dtype: That the model ran in.
        device: "cpu" or "gpu".
        quantize: Which of its components kept quantized weights, and how.
        attention: How attention was computed, where that was chosen.
    """
    ran: dict[str, Any] = {"dtype": dtype, "device": device, "quantize": quantize, "attention_backend": attention}
    return GenerationParameters.of(request, model=wanted.model, weight_paths=wanted.weight_paths, **ran)


def _values(
    arguments: argparse.Namespace,
    saved: GenerationParameters | None,
    other: OtherParameters | None,
    features: PromptFeatures | None,
) -> dict[str, Any]:
    """The fields of the request: what flags say, or else what the picture of --from does."""
    flags = {name: flag_value(arguments, row) for name, row in ROWS.items()}
    values = {name: value for name, value in flags.items() if value is not None}
    values |= {} if features is None else {"features": features}
    if saved is not None or other is not None:
        kept = other.values if other else {name: getattr(saved, name) for name, row in ROWS.items() if row.kept}
        left = without_replaced(kept, values)
        values = {name: value for name, value in left.items() if value is not None} | values
    if features is not None:
        values["prompt"] = arguments.prompt
    else:
        values["prompt"] = _first(arguments.prompt, values.get("prompt"), DEFAULT_PROMPT)
    if arguments.latents_in is not None:
        values["latents"] = read_latents(Path(arguments.latents_in))
    values["image"], values["mask_image"] = start_image(arguments, saved), start_mask(arguments, saved)
    values["loras"] = wanted_loras(arguments, saved) if other is None else found_loras(arguments, other)
    values["resize"] = arguments.resize or bool(saved and saved.is_resized)
    return values


def _named(arguments: argparse.Namespace) -> set[str]:
    """The fields of the request that flags say."""
    return {name for name, row in ROWS.items() if flag_value(arguments, row) is not None}


def _doubts(arguments: argparse.Namespace, saved: GenerationParameters | None) -> tuple[str, ...]:
    """What `GenerateOptions.doubts` says."""
    if saved is None or saved.image_digest != UNKNOWN_IMAGE or arguments.image is not None:
        return ()
    return (
        f"{arguments.source} is from a version that did not note whether a picture began with an image; if this one "
        "did, give it with --image, and --strength as it was",
    )


def _first(given: T | None, saved: T | None, default: T) -> T:
    value = saved if given is None else given
    return default if value is None else value
