"""Image-to-image: the latents it begins with.

Reference: diffusers pipelines/z_image/pipeline_z_image_img2img.py (prepare_latents).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.components import ZImageVaeModel
from max_zimage.device.devices import upload
from max_zimage.sampling.noise import image_seed, standard_normal

FloatArray = npt.NDArray[np.float32]

_POSTERIOR = 1  # the stream of a seed that the autoencoder's sample is drawn from; 0 is the starting noise


def posterior_noise(seed: int, count: int, channels: int, height: int, width: int) -> FloatArray:
    """The normal values that choose among the latents an image may stand for, float32 [count, channels, h/8, w/8].

    Drawn from the pictures' own seeds, as their starting noise is, but from another stream of them.
    """
    shape = (channels, height // 8, width // 8)
    return np.stack([standard_normal(image_seed(seed, index), shape, _POSTERIOR) for index in range(count)])


def starting_latents(
    vae: ZImageVaeModel, image: npt.NDArray[np.uint8], noise: FloatArray, seed: int | None, sigma: np.float32
) -> Buffer:
    """Mix an image with noise, on the device: sigma · noise + (1 - sigma) · image latents.

    Args:
        vae: Encodes the image, once for all pictures.
        image: uint8 [height, width, 3].
        noise: float32 [pictures, channels, height/8, width/8].
        seed: Of the first picture; None takes the posterior's mode in place of a sample.
        sigma: Noise level to begin with.

    Returns:
        float32 like `noise`.
    """
    count, channels = noise.shape[:2]
    height, width, _ = image.shape
    chosen = np.zeros_like(noise) if seed is None else posterior_noise(seed, count, channels, height, width)
    picture, given, start = (upload(each, vae.device) for each in (image[None], chosen, noise))
    return vae.start(picture, given, start, np.float32(sigma))
