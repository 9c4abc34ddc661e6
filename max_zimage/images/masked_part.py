"""The masked part of an image, drawn by itself in a size of its own and put back: "only masked" inpainting.

    the mask's box, and pixels around it  ->  grown to the shape of what is drawn, as far as the image goes
    cut out, resized, drawn anew, resized back, and mixed into the image by the mask's greys

Where the image does not go as far as that shape, the pixels of the part's edge fill what is drawn around it.

Reference: stable-diffusion-webui modules/masking.py (get_crop_region_v2, expand_crop_region) and
modules/processing.py (apply_overlay).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from max_zimage.images.masks import mixed
from max_zimage.images.read import resized

Pixels = npt.NDArray[np.uint8]


Ends = tuple[int, int]
"""Where a stretch of pixels begins, and where it has ended."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedPart:
    """A part of an image.

    Attributes:
        image: uint8 [rows, columns, 3], all of it.
        mask: uint8 [rows, columns], how much of what is drawn shows.
        rows: Of the image, those of the part.
        columns: The same across.
        inner_rows: Of what is drawn, those that are the part.
        inner_columns: The same across.
        height: Of what is drawn, in pixels.
        width: The same across.
    """

    image: Pixels
    mask: Pixels
    rows: Ends
    columns: Ends
    inner_rows: Ends
    inner_columns: Ends
    height: int
    width: int

    @classmethod
    def around(cls, image: Pixels, mask: Pixels, *, padding: int, height: int, width: int) -> MaskedPart | None:
        """The part that holds a mask.

        Args:
            image: uint8 [rows, columns, 3].
            mask: uint8 [rows, columns], above 0 for what is to be in it.
            padding: Pixels around that, as far as the image goes.
            height: Of what is to be drawn; the part gets its shape, to the nearest pixel.
            width: The same across.

        Returns:
            The part, or None if the mask is black.
        """
        found = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
        if not found[0].size:
            return None
        rows, columns = (
            (max(int(at[0]) - padding, 0), min(int(at[-1]) + 1 + padding, most))
            for at, most in zip(found, mask.shape, strict=True)
        )
        down, across = rows[1] - rows[0], columns[1] - columns[0]
        inner_rows, inner_columns = (0, height), (0, width)
        if across * height > down * width:
            rows, inner_rows = _grown(rows, round(across * height / width), mask.shape[0], height)
        else:
            columns, inner_columns = _grown(columns, round(down * width / height), mask.shape[1], width)
        return cls(
            image=image,
            mask=mask,
            rows=rows,
            columns=columns,
            inner_rows=inner_rows,
            inner_columns=inner_columns,
            height=height,
            width=width,
        )

    def cut(self, pixels: Pixels) -> Pixels:
        """What it has of an image or a mask, in the size that is drawn.

        Args:
            pixels: uint8 [rows, columns] or [rows, columns, 3].

        Returns:
            uint8 [height, width], or [height, width, 3].
        """
        (top, bottom), (left, right) = self.inner_rows, self.inner_columns
        part = Image.fromarray(np.ascontiguousarray(pixels[slice(*self.rows), slice(*self.columns)]))
        inner = np.asarray(part.resize((right - left, bottom - top), Image.Resampling.LANCZOS))
        borders = [(top, self.height - bottom), (left, self.width - right), (0, 0)]
        return np.pad(inner, borders[: inner.ndim], mode="edge")

    def put_back(self, drawn: Pixels) -> Pixels:
        """The whole image with what was drawn.

        Args:
            drawn: uint8 [height, width, 3].

        Returns:
            uint8 [rows, columns, 3]; the image's own where the mask is 0.
        """
        place = slice(*self.rows), slice(*self.columns)
        inner = np.ascontiguousarray(drawn[slice(*self.inner_rows), slice(*self.inner_columns)])
        height, width = self.mask[place].shape
        whole = self.image.copy()
        whole[place] = mixed(resized(inner, height, width), self.image[place], self.mask[place])
        return whole


def _grown(ends: Ends, wanted: int, most: int, drawn: int) -> tuple[Ends, Ends]:
    """A stretch of `wanted` pixels around another one, as far as `most` go, and where it is in what is drawn."""
    if wanted <= ends[1] - ends[0]:  # by rounding alone
        return ends, (0, drawn)
    if wanted <= most:
        first = min(max(ends[0] - (wanted - (ends[1] - ends[0])) // 2, 0), most - wanted)
        return (first, first + wanted), (0, drawn)
    inner = max(1, round(drawn * most / wanted))
    return (0, most), ((drawn - inner) // 2, (drawn - inner) // 2 + inner)
