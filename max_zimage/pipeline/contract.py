"""Members of MAX's diffusion pipelines that the pipeline's own loop goes without, for callers with a loop of their own.

Tensors are taken as MAX's buffers, its tensors, numpy arrays or whatever else speaks DLPack; buffers are returned,
since eager tensors would compile something at every operation.

Reference: MAX pipelines/architectures/z_image_modulev3/pipeline_z_image.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.device.devices import Tensor, as_buffer, download, upload
from max_zimage.errors import RequestError
from max_zimage.request.checks import whole_number

if TYPE_CHECKING:
    from max_zimage.pipeline.zimage import ZImagePipeline


class MaxContract:
    """The part of `ZImagePipeline` that is there for MAX's sake alone."""

    def prepare_prompt_embeddings(self, tokens: Tensor, num_images_per_prompt: int) -> Buffer:
        """Text features of captions, hidden state -2 of Qwen3.

        Args:
            tokens: int64 [length] or [batch, length], token ids without padding.
            num_images_per_prompt: Pictures of every caption, at least 1.

        Returns:
            [batch · num_images_per_prompt, length, hidden size] in the text encoder's dtype, on its device: all
            captions, then all again.

        Raises:
            RequestError: If the tokens are no such tensor, or an id is none of the text encoder's.
        """
        encoder = cast("ZImagePipeline", self).text_encoder
        copies = whole_number("num_images_per_prompt", num_images_per_prompt, low=1, high=2**31 - 1)
        ids = _token_ids(tokens, encoder.spec.vocab_size, encoder.spec.max_positions)
        features = encoder(list(ids))
        (batch, length), (_, rows, width) = ids.shape, map(int, features.shape)
        made = Buffer.zeros((copies * batch, length, width), features.dtype, encoder.device)
        # Rows of one caption lie together, and those behind its length mean nothing.
        found = features.view(features.dtype, (batch * rows, width))
        flat = made.view(made.dtype, (copies * batch * length, width))
        for item in range(copies * batch):
            start = item % batch * rows
            flat[item * length : (item + 1) * length, :].inplace_copy_from(found[start : start + length, :])
        return made

    def prepare_img2img_latents(self, noise_latents: Tensor, image_tensor: Tensor, sigmas: Tensor) -> Buffer:
        """Where image-to-image starts: sigma · noise + (1 - sigma) · image latents, the posterior's mode.

        Args:
            noise_latents: float32 [batch, channels, height/8, width/8].
            image_tensor: uint8 [batch, height, width, 3], or as MAX has it, float32 [batch, 3, height, width], each
                value level / 127.5 - 1. A batch of one stands for every picture.
            sigmas: float32; the first one is the noise level to start from.

        Returns:
            float32 like `noise_latents`.

        Raises:
            ValueError: If the image is neither, or not of the noise's size.
        """
        pipeline = cast("ZImagePipeline", self)
        noise, sigma = _array(noise_latents), np.float32(_array(sigmas)[0])
        image = _levels(_array(image_tensor))
        if len(image) == 1:
            image = np.repeat(image, len(noise), axis=0)
        latents = pipeline.vae.encode(upload(image, pipeline.device), upload(np.zeros_like(noise), pipeline.device))
        mixed = sigma * noise + (np.float32(1) - sigma) * download(latents)
        return upload(mixed.astype(np.float32), pipeline.device)


def _array(value: Tensor) -> npt.NDArray[Any]:
    return download(as_buffer(value))


def _token_ids(tokens: Tensor, vocab_size: int, most: int) -> npt.NDArray[np.int64]:
    """Token ids as int64 [batch, length]."""
    ids = _array(tokens)
    rule = f"tokens must be a tensor of ids from 0 to {vocab_size - 1}, [length] or [batch, length]"
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or 0 in ids.shape:
        raise RequestError(f"{rule}, got {ids.dtype} {list(ids.shape)}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise RequestError(f"{rule}, got ids from {ids.min()} to {ids.max()}")
    if ids.shape[-1] > most:
        raise RequestError(f"tokens may have a length of {most} at most, got {ids.shape[-1]}")
    return np.atleast_2d(ids).astype(np.int64)


def _levels(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Pictures as uint8 [batch, height, width, 3]."""
    if image.dtype == np.uint8 and image.ndim == 4 and image.shape[3] == 3:
        return image
    if image.dtype != np.float32 or image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(
            "image_tensor must be uint8 [batch, height, width, 3] or float32 [batch, 3, height, width] in [-1, 1], "
            f"got {image.dtype} {list(image.shape)}"
        )
    levels = (image.transpose(0, 2, 3, 1) + np.float32(1)) * np.float32(127.5)
    whole = np.round(levels)
    if not (np.abs(levels - whole) < 1e-3).all() or whole.min() < 0 or whole.max() > 255:
        raise ValueError(
            "a float32 image_tensor must hold the 256 levels of a picture, level / 127.5 - 1, and no others"
        )
    return whole.astype(np.uint8)
