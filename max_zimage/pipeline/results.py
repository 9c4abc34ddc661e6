"""What a call of the pipeline returns: its pictures, which also answer as diffusers' output object does.

And what calls written for diffusers say besides the arguments that the pipeline has.

Reference: diffusers pipelines/z_image/pipeline_output.py and pipeline_z_image.py, __call__.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from max.pipelines.diffusion.interface import DiffusionPipelineOutput
from PIL import Image

from max_zimage.pipeline.carried import Carried
from max_zimage.request.fields import ROWS
from max_zimage.request.metadata import GenerationParameters

_OTHERS: dict[str, tuple[object, str]] = {
    "return_dict": (True, "the result is the pictures, and answers to .images"),
    "joint_attention_kwargs": (None, "attention is compiled and takes none; leave it out"),
    "callback_on_step_end_tensor_inputs": (["latents"], "callbacks are given the latents alone; leave it out"),
}
"""Arguments of diffusers' call that this one has not: the value that means what happens here, and what to do else."""


@dataclass
class ZImagePipelineOutput(DiffusionPipelineOutput):
    """What a request makes.

    Attributes:
        images: uint8 [pictures, height, width, 3] ("np"), PIL images ("pil"), or latents before decoding, float32
            [pictures, channels, height/8, width/8] ("latent").
        computed: bool [evaluations, items], which evaluations ran the whole transformer; items are the pictures under
            their prompts, then with guidance under their negative prompts.
    """

    images: Any
    computed: npt.NDArray[np.bool_]


class Pictures(list[Image.Image]):
    """The pictures of a call, which also answer to `.images` and, where there is one, to `.save`.

    Attributes:
        carried: What their files are to say; None where nothing is known.
    """

    carried: Carried | None = None

    @property
    def parameters(self) -> list[GenerationParameters | None]:
        """What each picture was drawn with; None where nothing would draw it again."""
        return [None if self.carried is None else self.carried.parameters(picture) for picture in range(len(self))]

    @property
    def images(self) -> Pictures:
        """The list itself, under the name that diffusers' output has for it."""
        return self

    def save(
        self,
        file: str | os.PathLike[str] | IO[bytes],
        format: str | None = None,
        *,
        metadata: bool | None = None,
        **options: Any,
    ) -> None:
        """Save the one picture, as `PIL.Image.Image.save` does.

        Args:
            file: Where to.
            format: As Pillow takes it.
            metadata: Whether a PNG, JPEG or WebP says what it was drawn with and that a model made it, see
                `max_zimage.images.texts`; None for what is configured, and else so.
            **options: Pillow's, before those.

        Raises:
            ValueError: If there are several.
        """
        _check_single(len(self))
        self[0].save(file, format, **_texts(self.carried, metadata, file, format) | options)


class PictureArray(np.ndarray[Any, np.dtype[Any]]):
    """The pictures of a call as an array: uint8 [pictures, height, width, 3], or latents in float32.

    An array in every respect; what is indexed or computed from it is a plain one.

    Attributes:
        carried: As of `Pictures`.
    """

    carried: Carried | None = None

    @property
    def images(self) -> PictureArray:
        """The array itself, under the name that diffusers' output has for it."""
        return self

    def save(
        self,
        file: str | os.PathLike[str] | IO[bytes],
        format: str | None = None,
        *,
        metadata: bool | None = None,
        **options: Any,
    ) -> None:
        """Save the one picture; see `Pictures.save`.

        Raises:
            TypeError: If these are latents.
            ValueError: If there are several pictures.
        """
        if self.dtype != np.uint8:
            raise TypeError('latents are no pictures; ask for output_type="pil" or "np" to save one')
        _check_single(len(self), "Image.fromarray(result[0]).save(...)")
        texts = _texts(self.carried, metadata, file, format)
        Image.fromarray(np.asarray(self[0])).save(file, format, **texts | options)

    def __getitem__(self, key: Any) -> Any:
        """What a plain array has there."""
        return self.view(np.ndarray)[key]

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Return a plain array of what is computed from this one."""
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain


def result(images: list[Image.Image] | npt.NDArray[Any], carried: Carried | None = None) -> Pictures | PictureArray:
    """The images of `ZImagePipelineOutput` as a call returns them; nothing is copied but a list.

    Args:
        images: Of the output.
        carried: What their files are to say.
    """
    pictures = Pictures(images) if isinstance(images, list) else cast(PictureArray, images.view(PictureArray))
    pictures.carried = carried
    return pictures


def _texts(carried: Carried | None, wish: bool | None, file: object, format: str | None) -> dict[str, Any]:
    if carried is None or not (carried.is_usual if wish is None else wish):
        return {}
    return carried.save_options(file, format, 0)


def _check_single(count: int, way: str = "result[0].save(...)") -> None:
    if count != 1:
        raise ValueError(f"the result holds {count} pictures; save each by itself, such as {way}")


def fields_of(others: Mapping[str, object]) -> dict[str, object]:
    """Fields of the request's table that a call has besides those it lists, its generator and its enhancer.

    What is left must be diffusers'.

    Raises:
        TypeError: If something is neither; see `check_others`.
    """
    known = {*ROWS, "generator", "enhancer"}
    check_others({name: value for name, value in others.items() if name not in known})
    return {name: value for name, value in others.items() if name in known}


def check_others(others: Mapping[str, object]) -> None:
    """Refuse arguments that a call does not have, but for values of diffusers' that mean what happens anyway.

    Raises:
        TypeError: With the names, and what to do.
    """
    problems = []
    for name, value in others.items():
        means, remedy = _OTHERS.get(name, (..., "there is no such argument; leave it out"))
        if value is not means and not (isinstance(value, (list, tuple)) and list(value) == means):
            problems.append(f"{name}: {remedy}")
    if problems:
        raise TypeError(f"the call cannot take {'; '.join(problems)}")
