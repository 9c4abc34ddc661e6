"""Images from outside: what is read, and what is refused before it is decoded."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from max_zimage.input_images import decode_image, image_of_data_url, resized
from max_zimage.request_checks import RequestError

PIXELS = np.random.default_rng(3).integers(0, 256, (32, 48, 3), np.uint8)


def file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims to be as large as it is told."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pixels_come_through(kind: str) -> None:
    content = file(Image.fromarray(PIXELS), kind, lossless=True)
    np.testing.assert_array_equal(decode_image("image", content), PIXELS)
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
    np.testing.assert_array_equal(image_of_data_url("image", url), PIXELS)


def test_other_modes_become_rgb() -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    np.testing.assert_array_equal(decode_image("image", file(grey)), np.repeat(PIXELS[..., :1], 3, axis=2))
    opaque = Image.fromarray(np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)]))
    np.testing.assert_array_equal(decode_image("image", file(opaque)), PIXELS)


def test_exif_turns_the_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    assert decode_image("image", file(Image.fromarray(PIXELS), "JPEG", exif=exif)).shape == (48, 32, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "image is empty; send a PNG, JPEG or WebP file"),
        (b"GIF89a", "image is a GIF file; convert it to PNG, JPEG or WebP"),
        (file(Image.fromarray(PIXELS), "BMP"), "image is a BMP file; convert it"),
        (
            file(Image.fromarray(PIXELS))[:-200],
            "image is a damaged PNG file, or of a rare kind .image file is truncated",
        ),
        (bomb(6000, 4000), "image has 6000x4000 pixels, at most 16777216 are allowed; send a smaller one"),
        (bomb(60000, 60000), "image has 60000x60000 pixels, at most 16777216 are allowed; send a smaller one"),
        (bomb(2**31 - 1, 2**31 - 1), "image "),
        (
            file(Image.fromarray(PIXELS), "WEBP", save_all=True, append_images=[Image.fromarray(PIXELS[::-1])]),
            "image is animated; send a single picture",
        ),
        (file(Image.new("RGBA", (8, 8), (255, 0, 0, 128))), "image has transparent pixels"),
    ],
    ids=["empty", "gif", "bmp", "cut", "large", "bomb", "overflow", "animated", "transparent"],
)
def test_what_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decode_image("image", content)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "http://localhost/star.png",
            "must be a data URL, \"data:image/png;base64,...\", got 'http://localhost/star.png'",
        ),
        ("file:///etc/passwd", "must be a data URL"),
        ("data:text/plain;base64,AAAA", "must be a data URL"),
        ("data:image/png;base64,A!A", "is no valid base64"),
        ("data:image/png;base64,AAAA", "is no PNG"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        image_of_data_url("image", url)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_damage_never_comes_through_as_another_error(place: int, value: int, kind: str) -> None:
    content = bytearray(file(Image.fromarray(PIXELS), kind))
    content[place % len(content)] = value
    try:
        assert decode_image("image", bytes(content)).dtype == np.uint8
    except RequestError as error:
        assert str(error).startswith("image ")


def test_resized() -> None:
    assert resized(PIXELS, 64, 96).shape == (64, 96, 3)
    np.testing.assert_array_equal(resized(PIXELS, 32, 48), PIXELS)
