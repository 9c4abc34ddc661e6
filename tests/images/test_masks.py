"""Masks in greys and in transparency, as files and as Python has them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage.errors import RequestError
from max_zimage.images.masks import alpha, decode_alpha_mask, decode_mask, greys, mask_of

SHADES = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def encoded(picture: Image.Image, **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG", **options)
    return content.getvalue()


def with_alpha(shades: np.ndarray) -> Image.Image:
    colours = np.random.default_rng(0).integers(0, 256, (*shades.shape, 3), np.uint8)
    return Image.fromarray(np.dstack([colours, shades]))


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_a_mask_in_greys_goes_by_brightness(mode: str) -> None:
    np.testing.assert_array_equal(decode_mask("mask", encoded(Image.fromarray(SHADES).convert(mode))), SHADES)


def test_colours_are_as_bright_as_pillow_says() -> None:
    image = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    weighted = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(greys(image).astype(float) - weighted).max() <= 1


def test_a_mask_in_transparency_is_what_shows_through() -> None:
    np.testing.assert_array_equal(decode_alpha_mask("mask", encoded(with_alpha(SHADES))), 255 - SHADES)
    two = Image.merge("LA", [Image.new("L", (8, 6), 9), Image.fromarray(SHADES)])
    np.testing.assert_array_equal(decode_alpha_mask("mask", encoded(two)), 255 - SHADES)


def test_transparent_colours_of_a_palette_and_of_a_key() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.putpixel((1, 0), 1)
    content = encoded(palette, transparency=bytes([255, 64]))
    np.testing.assert_array_equal(decode_alpha_mask("mask", content), [[0, 191]])
    key = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    np.testing.assert_array_equal(decode_alpha_mask("mask", encoded(key, transparency=(4, 5, 6))), [[0, 255]])


def test_a_mask_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(with_alpha(SHADES), exif=exif)
    np.testing.assert_array_equal(decode_alpha_mask("mask", content), np.rot90(255 - SHADES, -1))


def test_each_convention_refuses_the_other() -> None:
    with pytest.raises(RequestError, match="white is drawn anew, black is kept; put it on"):
        decode_mask("mask_image", encoded(with_alpha(SHADES)))
    for opaque in (Image.fromarray(SHADES), with_alpha(np.full_like(SHADES, 255))):
        with pytest.raises(RequestError, match=r"no transparent pixels, .* in black and white goes into mask_image"):
            decode_alpha_mask("mask", encoded(opaque))
    assert alpha(encoded(Image.fromarray(SHADES))) is None


@pytest.mark.parametrize("content", [b"", b"GIF89a", encoded(with_alpha(SHADES))[:60]], ids=["empty", "gif", "cut"])
def test_what_is_no_picture_is_refused_as_such(content: bytes) -> None:
    for read in (decode_mask, decode_alpha_mask):
        with pytest.raises(RequestError, match="mask"):
            read("mask", content)
    with pytest.raises(RequestError, match="8x6 pixels, at most 40"):
        decode_alpha_mask("mask", encoded(with_alpha(SHADES)), 40)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "L", "RGB", "P"])
def test_a_picture_that_is_cut_off_is_named(mode: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64), np.uint8)
    content = encoded(Image.fromarray(noise).convert(mode))
    cut = Image.open(io.BytesIO(content[: len(content) // 2]))
    with pytest.raises(RequestError, match="mask_image cannot be decoded"):
        mask_of("mask_image", cut, (64, 64))
    closed = Image.new(mode, (8, 6))
    closed.close()
    with pytest.raises(RequestError, match=r"mask_image cannot be decoded \(Operation on closed image"):
        mask_of("mask_image", closed, (64, 64))


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_pictures_with_transparency_of_every_mode(mode: str) -> None:
    opaque = Image.merge("LA", [Image.fromarray(SHADES), Image.new("L", (8, 6), 255)])
    through = Image.merge("LA", [Image.fromarray(SHADES), Image.fromarray(SHADES)])
    first, second = (
        each.convert("RGBA").convert(mode) if mode != "La" else each.convert(mode) for each in (opaque, through)
    )
    if mode != "PA":  # whose palette has other greys
        np.testing.assert_array_equal(mask_of("mask_image", first, (64, 64)), SHADES)
    with pytest.raises(RequestError, match="white is drawn anew, black is kept; put it on"):
        mask_of("mask_image", second, (64, 64))


def test_arrays() -> None:
    np.testing.assert_array_equal(mask_of("mask", SHADES, (64, 64)), SHADES)
    np.testing.assert_array_equal(mask_of("mask", SHADES > 100, (64, 64)), np.where(SHADES > 100, 255, 0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mask.png", "got str; open it with PIL.Image.open"),
        (np.zeros((4, 4, 3), np.uint8), r"got uint8 \[4, 4, 3\]; white, 255, is drawn anew"),
        (np.zeros((4, 4)), r"got float64 \[4, 4\]; scale it to 0 to 255 and convert it with .astype"),
        (np.zeros((0, 4), np.uint8), r"got uint8 \[0, 4\]"),
        (3, "got int; convert it before"),
    ],
)
def test_other_values_are_refused(value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        mask_of("mask_image", value, (64, 64))
