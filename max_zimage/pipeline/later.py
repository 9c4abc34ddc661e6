"""The legs of a run behind the first one, brought to the device when they begin.

Between two legs, and nowhere else, latents are on the host: a picture is resized there, latents are interpolated.
"""

from __future__ import annotations

import numpy as np
from max.driver import Buffer

from max_zimage.components import ZImageTransformerModel, ZImageVaeModel
from max_zimage.images.read import resized
from max_zimage.pipeline.batch import FloatArray, Later, ZImageModelInputs
from max_zimage.pipeline.denoising import Denoising
from max_zimage.pipeline.prepare import laid_out
from max_zimage.pipeline.stages import decoded, unpacked, unpacked_tokens
from max_zimage.pipeline.start_from_image import starting_latents
from max_zimage.sampling.bicubic import interpolated


def inputs_of_later(
    later: Later, before: Denoising, transformer: ZImageTransformerModel, vae: ZImageVaeModel
) -> ZImageModelInputs:
    """Go on from a leg that is done: the inputs of the next one.

    Args:
        later: The next one.
        before: The one that is done.
        transformer: Will run the steps.
        vae: Decodes and encodes where a picture is resized.
    """
    leg, side = later.leg, vae.spec.downscale
    shape = vae.spec.latent_channels, leg.asked.height // side, leg.asked.width // side
    noise = np.concatenate([source.starting(1, shape) for source in later.sources])
    start: list[FloatArray | Buffer]
    if leg.begins == "picture":
        start = _from_pictures(later, before, vae, noise)
    else:
        rows, columns = before.sides
        clean = unpacked(before.latents, rows, columns)
        if leg.begins == "estimate":
            clean = unpacked_tokens(before.clean_estimate(), rows, columns)
        level = leg.plan.sigmas[0]
        start = [level * noise + (np.float32(1) - level) * interpolated(clean, *shape[1:])]
    takes_noise = later.evaluations.noisy.any()
    seeds = tuple(source.seed for source in later.sources) if takes_noise else ()
    plan, asked, pictures = leg.plan, leg.asked, len(later.sources)
    return laid_out(transformer, later.captions, start, plan, later.evaluations, later.guidance, pictures, seeds, asked)


def _from_pictures(
    later: Later, before: Denoising, vae: ZImageVaeModel, noise: FloatArray
) -> list[FloatArray | Buffer]:
    """Resized pictures mixed with noise, one after the other: the encoder works at full size."""
    asked, level = later.leg.asked, later.leg.plan.sigmas[0]
    pixels, finite = decoded(vae, before.latents, *before.sides, asked.tiling)
    noise[~finite] = np.nan  # a picture that is lost stays lost: it is found when all steps are done
    return [
        starting_latents(vae, resized(picture, asked.height, asked.width), own[None], source, level, asked.tiling)
        for own, picture, source in zip(noise, pixels, later.sources, strict=True)
    ]
