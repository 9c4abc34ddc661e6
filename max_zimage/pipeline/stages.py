"""The stages around the denoising loop: captions to caption tokens, and latents to what a call returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType
from PIL import Image

from max_zimage.components import ZImageTextEncoderModel, ZImageTransformerModel, ZImageVaeModel
from max_zimage.device.devices import download, moved, upload_as
from max_zimage.images.tiles import WHOLE, Tiling
from max_zimage.pipeline.batch import Captions, ZImageModelInputs, caption_arguments
from max_zimage.pipeline.captions import changed_features
from max_zimage.pipeline.estimate import check_picture, check_request, pictures_at_once
from max_zimage.pipeline.inpainting import Paste
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.not_finite import (
    GIVEN_LATENTS,
    Flags,
    NotFiniteError,
    are_finite,
    require_finite,
    usual_suspects,
)
from max_zimage.request.checks import output_type as checked_output_type
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.positions import PIXELS_PER_TOKEN, padded


def check(
    sources: CheckpointManifest,
    text_encoder: ZImageTextEncoderModel,
    transformer: ZImageTransformerModel,
    asked: ZImageModelInputs | GenerationRequest,
) -> None:
    """Compare the memory that pictures take with what is free.

    Raises:
        NotEnoughMemoryError: If they do not fit; said before anything is computed.
    """
    device, again = transformer.device, transformer.again_bytes + text_encoder.layers.nbytes
    if isinstance(asked, GenerationRequest):
        check_request(sources, device, asked, again=again)
        return
    sizes = [(asked.height, asked.width, asked.guidance)]
    sizes += [(each.leg.asked.height, each.leg.asked.width, each.guidance) for each in asked.later]
    for height, width, guided in sizes:
        branches = 1 + guided.has_negative + len(guided.others)
        check_picture(
            sources,
            device,
            height=height,
            width=width,
            branches=branches,
            pictures=asked.batch,
            again=again,
            tiling=asked.tiling,
        )


def expect(vae: ZImageVaeModel, inputs: ZImageModelInputs, output_type: str) -> None:
    """Compile what decoding the pictures in tiles takes, before their steps are taken."""
    if output_type != "latent":
        height, width = (PIXELS_PER_TOKEN * side for side in (inputs.later[-1] if inputs.later else inputs).sides)
        vae.expect(inputs.tiling, height, width)


def check_output_type(name: str) -> None:
    """Refuse an output type that there is not.

    Raises:
        RequestError: With those that there are.
    """
    checked_output_type(name)


@contextmanager
def blaming(latents: npt.NDArray[np.float32] | None) -> Iterator[None]:
    """Name latents that a request brought among what may be the cause of pictures that are not finite."""
    try:
        yield
    except NotFiniteError as error:
        if latents is None:
            raise
        raise error.blaming(GIVEN_LATENTS) from None


def caption_tokens(
    text_encoder: ZImageTextEncoderModel, transformer: ZImageTransformerModel, captions: Captions
) -> Buffer:
    """`caption_features`, then `conditioned`."""
    return conditioned(transformer, caption_features(text_encoder, transformer, captions), captions)


def caption_features(
    text_encoder: ZImageTextEncoderModel, transformer: ZImageTransformerModel, captions: Captions
) -> Buffer:
    """The text features of captions.

    Args:
        text_encoder: Encodes captions that are given as token ids.
        transformer: Takes features that are given in its dtype, on its device.
        captions: The distinct captions of a request.

    Returns:
        [captions, longest caption rounded up to a multiple of 32, caption_dim] in the model's dtype, on the
        transformer's device.
    """
    given = captions.features
    if captions.are_changed or (captions.tokens and text_encoder.kept_features is not None):
        given = changed_features(text_encoder, captions)
    if given:
        return upload_as(padded_features(given), transformer.dtype_name, transformer.device)
    return moved(text_encoder(captions.tokens, captions.hidden_layer), transformer.device)


def conditioned(transformer: ZImageTransformerModel, features: Buffer, captions: Captions) -> Buffer:
    """Text features to refined caption tokens.

    Args:
        transformer: Embeds and refines features.
        features: From `caption_features`.
        captions: The distinct captions, and which one each branch row shows.

    Returns:
        [items, longest caption rounded up to a multiple of 32, dim] in the model's dtype.
    """
    return transformer.conditioning(features, *caption_arguments(transformer.rope_spec, captions, transformer.device))[
        0
    ]


def padded_features(features: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Stack features of unequal length, float32 [captions, longest rounded up to a multiple of 32, caption_dim]."""
    length = padded(max(len(item) for item in features))
    return np.stack([np.pad(item, ((0, length - len(item)), (0, 0))) for item in features])


def as_squares(latents: Buffer) -> Buffer:
    """[batch, channels, height, width] seen as [batch, channels, height/2, 2, width/2, 2]; nothing moves.

    Raises:
        ValueError: If a side is odd.
    """
    if latents.rank == 6:
        return latents
    batch, channels, height, width = map(int, latents.shape)
    if height % 2 or width % 2:
        raise ValueError(f"latents must have even sides, got {height} x {width}; picture sides are multiples of 16")
    return latents.view(DType.float32, (batch, channels, height // 2, 2, width // 2, 2))


def token_squares(latents: Buffer, rows: int, columns: int) -> Buffer:
    """[batch, rows · columns, 4 · channels] seen as [batch, rows, columns, 2, 2, channels]; nothing moves."""
    return latents.view(DType.float32, (int(latents.shape[0]), rows, columns, 2, 2, int(latents.shape[2]) // 4))


def decoded(
    vae: ZImageVaeModel,
    latents: Buffer,
    rows: int,
    columns: int,
    tiling: Tiling = WHOLE,
    pastes: Sequence[Paste | None] = (),
) -> tuple[npt.NDArray[np.uint8], Flags]:
    """Packed latents to pictures, on the host; large ones a few at a time, or in tiles.

    Args:
        vae: Decodes them.
        latents: float32 [batch, rows · columns, 4 · channels].
        rows: Height in tokens.
        columns: Width in tokens.
        tiling: Whether pictures that are larger than a tile are decoded in tiles.
        pastes: For each picture what takes its place again in it, or None; empty for nothing.

    Returns:
        uint8 [batch, 16 · rows, 16 · columns, 3], and bool [batch]: whether a picture and its latents are finite.
    """
    pixels, finite = _decoded(vae, latents, rows, columns, tiling)
    for index, paste in enumerate(pastes):
        if paste is not None:
            pixels[index] = paste(pixels[index])
    return pixels, finite


def _decoded(
    vae: ZImageVaeModel, latents: Buffer, rows: int, columns: int, tiling: Tiling
) -> tuple[npt.NDArray[np.uint8], Flags]:
    vae.enter()
    if tiling.is_needed(PIXELS_PER_TOKEN * rows, PIXELS_PER_TOKEN * columns):
        channels_last = np.ascontiguousarray(unpacked(latents, rows, columns).transpose(0, 2, 3, 1))
        return vae.decode_in_tiles(channels_last, tiling)
    squares = token_squares(moved(latents, vae.device), rows, columns)
    batch = int(squares.shape[0])
    stride = pictures_at_once(batch, PIXELS_PER_TOKEN * rows, PIXELS_PER_TOKEN * columns)
    parts = [squares[start : start + stride, :, :, :, :, :] for start in range(0, batch, stride)]
    outputs = [[download(each) for each in vae.model(part)] for part in parts]
    pixels, energy = (np.concatenate(each) for each in zip(*outputs, strict=True))
    return pixels, np.isfinite(energy)


def unpacked(latents: Buffer, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Packed latents as diffusers has them, on the host: float32 [batch, channels, 2 · rows, 2 · columns]."""
    return unpacked_tokens(download(latents), rows, columns)


def unpacked_tokens(tokens: npt.NDArray[np.float32], rows: int, columns: int) -> npt.NDArray[np.float32]:
    """The same of packed latents on the host, float32 [batch, rows · columns, 4 · channels]."""
    batch, channels = len(tokens), tokens.shape[-1] // 4
    channels_first = tokens.reshape(batch, rows, columns, 2, 2, channels).transpose(0, 5, 1, 3, 2, 4)
    return np.ascontiguousarray(channels_first).reshape(batch, channels, 2 * rows, 2 * columns)


def finished(
    vae: ZImageVaeModel,
    latents: Buffer,
    rows: int,
    columns: int,
    output_type: str,
    inputs: ZImageModelInputs | None = None,
) -> npt.NDArray[Any] | list[Image.Image]:
    """Packed latents to what a call returns.

    Args:
        vae: Decodes them.
        latents: float32 [batch, rows · columns, 4 · channels].
        rows: Height in tokens.
        columns: Width in tokens.
        output_type: "np", "pil" or "latent".
        inputs: The request: how its pictures are decoded, what they keep, and what may be the cause where something is
            not finite.

    Raises:
        ValueError: If the output type is unknown.
        NotFiniteError: If a picture or its latents are NaN or infinity; it holds the others.
    """
    names = inputs.adapter_names if inputs else []
    kind = checked_output_type(output_type)
    suspects = usual_suspects(vae.dtype_name, inputs and inputs.step_cache, names)
    if kind == "latent":
        values = unpacked(latents, rows, columns)
        require_finite(values, are_finite(values), suspects)
        return values
    last = (inputs.tiling, inputs.pastes) if inputs else ()
    pixels, finite = decoded(vae, latents, rows, columns, *last)
    images = pixels if kind == "np" else [Image.fromarray(image) for image in pixels]
    require_finite(images, finite, suspects)
    return images
