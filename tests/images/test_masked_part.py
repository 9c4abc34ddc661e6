"""The part of an image that a mask needs: where it lies, what is cut out, and what is put back."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from max_zimage.images.masked_part import MaskedPart
from tests.references.scenes import render

ROWS, COLUMNS = 96, 160


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.asarray(Image.fromarray(render([("red", "star", (0.4, 0.5), 0.3)], "blue")).resize((COLUMNS, ROWS)))


def masked(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[slice(*rows), slice(*columns)] = 255
    return mask


# Mask; padding; what is drawn; the part. Worked out by hand from the mask's box: padding first, then the shape, then
# moved into the image.
CASES = [
    (((40, 60), (70, 90)), 0, (64, 64), ((40, 60), (70, 90))),
    (((40, 60), (70, 90)), 10, (64, 64), ((30, 70), (60, 100))),
    (((40, 60), (70, 90)), 0, (64, 128), ((40, 60), (60, 100))),  # twice as wide
    (((40, 60), (70, 90)), 0, (128, 64), ((30, 70), (70, 90))),  # twice as high
    (((0, 10), (0, 30)), 0, (64, 64), ((0, 30), (0, 30))),  # moved down
    (((90, 96), (150, 160)), 5, (64, 64), ((81, 96), (145, 160))),  # padding ends with the image
    (((86, 96), (130, 160)), 0, (64, 64), ((66, 96), (130, 160))),  # moved up
]


@pytest.mark.parametrize(("mask", "padding", "size", "part"), CASES)
def test_the_part_has_the_shape_of_what_is_drawn(
    mask: tuple[tuple[int, int], tuple[int, int]],
    padding: int,
    size: tuple[int, int],
    part: tuple[tuple[int, int], tuple[int, int]],
    image: np.ndarray,
) -> None:
    found = MaskedPart.around(image, masked(*mask), padding=padding, height=size[0], width=size[1])
    assert found is not None
    assert (found.rows, found.columns) == part
    assert (found.inner_rows, found.inner_columns) == ((0, size[0]), (0, size[1]))
    box = part[1][0], part[0][0], part[1][1], part[0][1]
    expected = Image.fromarray(image).crop(box).resize(size[::-1], Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(found.cut(image), np.asarray(expected))


def test_an_image_that_is_too_narrow_has_its_edges_around(image: np.ndarray) -> None:
    """All of the width is in the mask, and a square of it would be higher than the image."""
    mask = masked((20, 30), (0, COLUMNS))
    found = MaskedPart.around(image, mask, padding=0, height=160, width=160)
    assert found is not None
    assert (found.rows, found.inner_rows) == ((0, ROWS), (32, 128))
    cut = found.cut(image)
    np.testing.assert_array_equal(cut[32:128], image)
    np.testing.assert_array_equal(cut[:32], np.repeat(image[:1], 32, axis=0))
    np.testing.assert_array_equal(found.put_back(cut), image)
    np.testing.assert_array_equal(found.put_back(255 - cut)[20:30], 255 - image[20:30])


def test_what_is_drawn_shows_by_the_greys_of_the_mask(image: np.ndarray) -> None:
    mask = masked((40, 60), (70, 90))
    mask[40:60, 80:90] = 51
    found = MaskedPart.around(image, mask, padding=0, height=40, width=40)
    assert found is not None
    whole = found.put_back(np.full((40, 40, 3), 200, np.uint8))
    np.testing.assert_array_equal(whole[mask == 0], image[mask == 0])
    assert (whole[40:60, 70:80] == 200).all()
    np.testing.assert_array_equal(whole[40:60, 80:90], np.rint(200 / 5 + image[40:60, 80:90] * 0.8))


def test_a_black_mask_has_no_part(image: np.ndarray) -> None:
    assert MaskedPart.around(image, masked((0, 0), (0, 0)), padding=8, height=64, width=64) is None
