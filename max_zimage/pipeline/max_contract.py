"""Members of MAX's diffusion pipelines that the pipeline's own loop goes without, for callers with a loop of their own.

`ZImagePipeline` takes these functions for its methods, one line each. Tensors are taken as MAX's buffers, its tensors,
numpy arrays or whatever else speaks DLPack; buffers are returned, since eager tensors would compile something at every
operation. Those about step caches are in `max_zimage.pipeline.max_step_cache`.

Reference: MAX pipelines/architectures/z_image_modulev3/pipeline_z_image.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType
from max.graph import DeviceRef
from max.pipelines.context import PixelContext
from PIL import Image

from max_zimage.compile.compiler import compile_together
from max_zimage.compile.graphs import shared_graph
from max_zimage.device.devices import Tensor, as_buffer, download, finish_copies, upload
from max_zimage.errors import RequestError
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.context_checks import check_context
from max_zimage.pipeline.max_step_cache import create_cache_state, run_denoising_step, run_transformer
from max_zimage.pipeline.parts import Parts
from max_zimage.pipeline.prepare_contexts import inputs_of_contexts
from max_zimage.pipeline.stages import as_squares, finished
from max_zimage.request.checks import whole_number
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache, TaylorSeer, configured

__all__ = ["create_cache_state", "run_denoising_step", "run_transformer"]


def build_preprocess_latents(self: Parts) -> None:
    """Define patchify + pack; it compiles with the other graphs."""
    self._pack = self.transformer.graph("pack")


def build_prepare_scheduler(self: Parts) -> None:
    """Compile what `prepare_scheduler` calls."""
    compile_together([shared_graph("prepare_scheduler", None, self.transformer.device_ref)])


def build_scheduler_step(self: Parts) -> None:
    """Compile what `scheduler_step` calls."""
    compile_together([shared_graph("scheduler_step", None, self.transformer.device_ref)])


def build_decode_latents(self: Parts) -> None:
    """The autoencoder's own graph unpacks, denormalizes, decodes and quantizes: it is there with the component."""


def preprocess_latents(self: Parts, latents: Tensor, dtype: DType = DType.float32) -> Buffer:
    """Patchify and pack.

    Args:
        self: The pipeline.
        latents: float32 [batch, channels, height/8, width/8].
        dtype: float32: latents have no other dtype in this engine.

    Returns:
        float32 [batch, height/16 · width/16, 4 · channels].

    Raises:
        ValueError: If the dtype is not float32 or a side is odd.
    """
    if dtype != DType.float32:
        raise ValueError(f"latents are float32 from the first step to the last, got {dtype}; use DType.float32")
    return self._pack(as_squares(as_buffer(latents)).to(self.device))[0]


def prepare_inputs(self: Parts, context: PixelContext) -> ZImageModelInputs:
    """Bring a request of `max serve` to the device.

    Args:
        self: The pipeline.
        context: With tokens, schedule and noise in it, as `ZImageTokenizer` makes it.

    Raises:
        RequestError: If it is not whole.
    """
    check_context(context, self.sources.limits, self.text_encoder.spec.vocab_size)
    parts = self.transformer, self.vae, self.text_encoder
    return inputs_of_contexts([context], self.sources.specs.schedule, *parts)


def decode_latents(
    self: Parts, latents: Tensor, h_carrier: Any, w_carrier: Any, output_type: str = "np"
) -> npt.NDArray[Any] | list[Image.Image]:
    """Packed latents to pictures.

    Args:
        self: The pipeline.
        latents: float32 [batch, image tokens, 4 · channels].
        h_carrier: Anything of shape [height/16]; carries the height in its shape.
        w_carrier: Anything of shape [width/16].
        output_type: "np", "pil" or "latent".

    Returns:
        What `ZImagePipelineOutput.images` describes.

    Raises:
        ValueError: If the output type is unknown.
        NotFiniteError: If a picture or its latents are NaN or infinity; it holds the others.
    """
    return finished(self.vae, as_buffer(latents), int(h_carrier.shape[0]), int(w_carrier.shape[0]), output_type)


def configured_cache(self: Parts) -> StepCache | None:
    """What MAX's flags ask for."""
    return configured(self.cache_config, self.default_residual_threshold)


def use_step_cache(self: Parts, cache: StepCache | None) -> None:
    """Let requests that say nothing use a step cache, and compile what it runs."""
    compile_step_cache(self, cache)
    self.sources = self.sources.with_step_cache(cache)


def compile_step_cache(self: Parts, cache: StepCache | None) -> None:
    """Compile what a step cache runs now, rather than when a request first asks for it."""
    if isinstance(cache, FirstBlockCache):
        self.transformer.first_block_graphs(cache.block)
    elif isinstance(cache, TaylorSeer):
        self.transformer.taylor_graphs  # noqa: B018  (compiled by being asked for)


def prepare_scheduler(sigmas: Tensor) -> tuple[Buffer, Buffer]:
    """Split sigmas, float32 [steps + 1], into timesteps (each step's sigma) and step deltas, float32 [steps]."""
    levels = as_buffer(sigmas)
    timesteps, deltas = shared_graph("prepare_scheduler", None, DeviceRef.from_device(levels.device))(levels)
    return timesteps, deltas


def scheduler_step(latents: Tensor, noise_pred: Tensor, dt: Tensor) -> Buffer:
    """Return latents - dt · noise_pred, all float32: tokens [batch, image tokens, 4 · channels], dt [1]."""
    inputs = [as_buffer(each) for each in (latents, noise_pred, dt)]
    return shared_graph("scheduler_step", None, DeviceRef.from_device(inputs[0].device))(*inputs)[0]


def prepare_prompt_embeddings(self: Parts, tokens: Tensor, num_images_per_prompt: int) -> Buffer:
    """Text features of captions, hidden state -2 of Qwen3.

    Args:
        self: The pipeline.
        tokens: int64 [length] or [batch, length], token ids without padding.
        num_images_per_prompt: Pictures of every caption, at least 1.

    Returns:
        [batch · num_images_per_prompt, length, hidden size] in the text encoder's dtype, on its device: all
        captions, then all again.

    Raises:
        RequestError: If the tokens are no such tensor, or an id is none of the text encoder's.
    """
    encoder = self.text_encoder
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
    finish_copies(made)
    return made


def prepare_img2img_latents(self: Parts, noise_latents: Tensor, image_tensor: Tensor, sigmas: Tensor) -> Buffer:
    """Where image-to-image starts: sigma · noise + (1 - sigma) · image latents, the posterior's mode.

    Args:
        self: The pipeline.
        noise_latents: float32 [batch, channels, height/8, width/8].
        image_tensor: uint8 [batch, height, width, 3], or as MAX has it, float32 [batch, 3, height, width], each
            value level / 127.5 - 1. A batch of one stands for every picture.
        sigmas: float32; the first one is the noise level to start from.

    Returns:
        float32 like `noise_latents`.

    Raises:
        ValueError: If the image is neither, or not of the noise's size.
    """
    noise, sigma = _array(noise_latents), np.float32(_array(sigmas)[0])
    image = _levels(_array(image_tensor))
    if len(image) == 1:
        image = np.repeat(image, len(noise), axis=0)
    latents = self.vae.encode(*(upload(each, self.vae.device) for each in (image, np.zeros_like(noise))))
    mixed = sigma * noise + (np.float32(1) - sigma) * download(latents)
    return upload(mixed.astype(np.float32), self.device)


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
