"""Image-to-image: the latents it begins with.

Reference: diffusers pipelines/z_image/pipeline_z_image_img2img.py (prepare_latents).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.components import ZImageVaeModel
from max_zimage.device.devices import upload
from max_zimage.images.tiles import Tiling
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
    """Mix an image with noise, on the device: sigma · noise + (1 - sigma) · image latents.

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
