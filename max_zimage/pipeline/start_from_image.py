"""Image-to-image and inpainting: the latents they begin with.

Reference: diffusers pipelines/z_image/pipeline_z_image_img2img.py (prepare_latents), pipeline_z_image_inpaint.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.components import ZImageTransformerModel, ZImageVaeModel
from max_zimage.device.devices import moved, upload
from max_zimage.images.tiles import Tiling
from max_zimage.pipeline import inpainting
from max_zimage.pipeline.inpainting import Masked, Paste
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.schedule import Schedule
from max_zimage.sampling.starting_noise import NoiseSource

FloatArray = npt.NDArray[np.float32]


def starting_latents(
    vae: ZImageVaeModel,
    image: npt.NDArray[np.uint8],
    noise: FloatArray,
    source: NoiseSource | None,
    sigma: np.float32,
    tiling: Tiling,
) -> Buffer:
    """Mix an image with noise, on the autoencoder's device: sigma · noise + (1 - sigma) · image latents.

    Args:
        vae: Encodes the image, once for all pictures.
        image: uint8 [height, width, 3].
        noise: float32 [pictures, channels, height/8, width/8].
        source: Chooses among the latents that the image may stand for; None takes the posterior's mode.
        sigma: Noise level to begin with.
        tiling: Whether the image is encoded in tiles.

    Returns:
        float32 like `noise`.
    """
    pictures, *shape = map(int, noise.shape)
    chosen = np.zeros_like(noise) if source is None else source.posterior(pictures, (shape[0], shape[1], shape[2]))
    given, start = (upload(each, vae.device) for each in (chosen, noise))
    return vae.start(image[None], given, start, np.float32(sigma), tiling)


def masked_start(
    vae: ZImageVaeModel,
    transformer: ZImageTransformerModel,
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.uint8],
    noise: FloatArray,
    source: NoiseSource | None,
    sigma: np.float32,
    tiling: Tiling,
    *,
    soft: bool,
) -> tuple[Buffer, Masked]:
    """What inpainting begins with, and what it keeps; the image is encoded once for both.

    Args:
        vae: Encodes the image.
        transformer: Has the graph that mixes it with noise.
        image: uint8 [height, width, 3].
        mask: uint8 [height, width], 255 is repainted.
        noise: float32 [pictures, channels, height/8, width/8].
        source: As in `starting_latents`.
        sigma: Noise level to begin with.
        tiling: How the image is encoded.
        soft: Whether the mask keeps its grades.

    Returns:
        float32 like `noise`, and what is kept.
    """
    given = starting_latents(vae, image, np.zeros_like(noise), source, np.float32(0), tiling)
    latents = moved(given, transformer.device)
    shown = np.broadcast_to(inpainting.latent_mask(mask, vae.spec.downscale, soft=soft), noise.shape)
    masked = Masked(
        image=latents,
        noise=upload(noise, transformer.device),
        mask=upload(np.ascontiguousarray(shown), transformer.device),
        is_soft=soft,
    )
    return inpainting.start(transformer, masked, np.float32(sigma)), masked


def begin(
    asked: GenerationRequest,
    seed: int | None,
    noise: FloatArray,
    plan: Schedule,
    transformer: ZImageTransformerModel,
    vae: ZImageVaeModel,
) -> tuple[FloatArray | Buffer, Masked | None]:
    """What a request's pictures begin with, float32 like the noise, and what they keep; on the device with an image.

    Args:
        asked: The request.
        seed: Of its first picture; None where none draws noise.
        noise: float32 [pictures, channels, height/8, width/8].
        plan: Its schedule.
        transformer: Will run the steps.
        vae: Encodes the image.
    """
    image, mask = asked.start_image, asked.picture_mask
    source = None if seed is None else asked.noise_source(seed)
    if image is None:
        return noise, None
    if mask is None:
        return starting_latents(vae, image, noise, source, plan.sigmas[0], asked.tiling), None
    level, tiling = plan.sigmas[0], asked.tiling
    return masked_start(vae, transformer, image, mask, noise, source, level, tiling, soft=asked.soft_mask)


def pastes_of(asked: GenerationRequest, pictures: int) -> tuple[Paste | None, ...]:
    """What takes its place again in each of a request's pictures."""
    image, mask = asked.start_image, asked.picture_mask
    if not asked.composite or image is None or mask is None:
        return (None,) * pictures
    return (Paste(image=image, mask=mask),) * pictures
