"""Inpainting on its way from noise to picture: what the mask keeps, and the pixels that are pasted back at the end.

The mask of a latent is the pixel at its corner, and 128 is where repainting begins. A soft mask is the mean of its
pixels, and says how long a latent is kept: until the noise level is that share of the one that the run began with, so
that 0 is kept to the end and 1 is repainted from the start.

Reference: diffusers pipelines/z_image/pipeline_z_image_inpaint.py. Soft masks have none: the idea is that of ComfyUI
comfy_extras/nodes_differential_diffusion.py, which masks around each call of the model by the level's place between the
first and the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from max.driver import Buffer
from max.dtype import DType

from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import joined, kept_rows, upload
from max_zimage.images.masks import mixed

FloatArray = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

_HALF = 0.5
_SMALLEST = 1e-6
"""Below the mean of the faintest soft mask, 1 / (255 · 64): a latent whose mask is 0 is kept at every level."""
_KEEP_ALL = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Masked:
    """What pictures that share a batch keep, on the device.

    Attributes:
        image: float32 [batch, channels, height/8, width/8], the image's latents.
        noise: Like `image`, that the run begins with.
        mask: Like `image`, from 0, which is kept, to 1.
        is_soft: Whether the mask has grades.
    """

    image: Buffer
    noise: Buffer
    mask: Buffer
    is_soft: bool

    @staticmethod
    def joined(parts: Sequence[Masked]) -> Masked | None:
        """Those of several requests as one; None of none."""
        if not parts:
            return None
        image, noise, mask = (joined([getattr(part, name) for part in parts]) for name in ("image", "noise", "mask"))
        return Masked(image=image, noise=noise, mask=mask, is_soft=parts[0].is_soft)


@dataclass(frozen=True, kw_only=True, eq=False)
class Paste:
    """Pixels that take their place again in a picture.

    Attributes:
        image: uint8 [height, width, 3].
        mask: uint8 [height, width], how much of the new picture shows: 255 for nothing else.
    """

    image: Pixels
    mask: Pixels

    def __call__(self, picture: Pixels) -> Pixels:
        """The picture with the image's pixels, each rounded to the nearest level."""
        return mixed(picture, self.image, self.mask)


def latent_mask(mask: Pixels, side: int, *, soft: bool) -> FloatArray:
    """A mask of pixels as one of latents.

    Args:
        mask: uint8 [height, width].
        side: Pixels of a latent's side.
        soft: Whether it keeps its grades.

    Returns:
        float32 [height / side, width / side]: 0 or 1, or the mean from 0 to 1.
    """
    if not soft:
        return np.asarray(mask[::side, ::side] >= 128, np.float32)
    rows, columns = mask.shape
    squares = mask.reshape(rows // side, side, columns // side, side)
    return np.asarray(squares.mean(axis=(1, 3), dtype=np.float64) / 255, np.float32)


class Keeping:
    """Puts back what masks keep, after every step.

    Args:
        transformer: Has the graph.
        masked: What they keep.
        sigmas: float32 [steps + 1], the noise levels.
        pack: Latents to tokens.
    """

    def __init__(
        self,
        transformer: ZImageTransformerModel,
        masked: Masked,
        sigmas: FloatArray,
        pack: Callable[[Buffer], Buffer],
    ) -> None:
        self._graph = transformer.keep_unmasked
        self._parts = [pack(each) for each in (masked.image, masked.noise, masked.mask)]
        table = upload(_levels(sigmas, is_soft=masked.is_soft), transformer.device)
        self._levels = [table[i : i + 1, :].view(DType.float32, (3,)) for i in range(len(sigmas) - 1)]

    def __call__(self, step: int, latents: Buffer) -> Buffer:
        """The latents after a step, float32 [batch, image_tokens, patch_dim], as the next one begins with them."""
        return self._graph(latents, *self._parts, self._levels[step])[0]

    def keep(self, pictures: Sequence[int]) -> None:
        """Go on with some of the pictures."""
        self._parts = [kept_rows(each, pictures) for each in self._parts]


def keeping_of(
    transformer: ZImageTransformerModel, masked: Masked | None, sigmas: FloatArray, pack: Callable[[Buffer], Buffer]
) -> Keeping | None:
    """`Keeping` with these arguments, where there is something to keep."""
    return None if masked is None else Keeping(transformer, masked, sigmas, pack)


def start(transformer: ZImageTransformerModel, masked: Masked, sigma: np.float32) -> Buffer:
    """What the run begins with, sigma · noise + (1 - sigma) · latents of the image: float32 like `Masked.image`."""
    shape = tuple(map(int, masked.image.shape))
    width = transformer.spec.patch_dim
    # Number by number the order does not matter: nothing is packed for it.
    rows = (shape[0], int(np.prod(shape[1:])) // width, width)
    image, noise, mask = (each.view(DType.float32, rows) for each in (masked.image, masked.noise, masked.mask))
    levels = np.array([sigma, np.float32(1) - sigma, _KEEP_ALL], np.float32)
    kept = transformer.keep_unmasked(image, image, noise, mask, upload(levels, transformer.device))[0]
    return kept.view(DType.float32, shape)


def _levels(sigmas: FloatArray, *, is_soft: bool) -> FloatArray:
    """The last argument of the graph after each step: float32 [steps, 3]."""
    begin, behind = np.float32(sigmas[0]), np.asarray(sigmas[1:], np.float32)
    thresholds = np.maximum(behind / begin, _SMALLEST) if is_soft else np.full_like(behind, _HALF)
    return np.stack([behind, np.float32(1) - behind, thresholds], axis=1)
