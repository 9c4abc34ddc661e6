"""Images from outside: what is read, and what is refused before it is decoded."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from max_zimage.errors import RequestError
from max_zimage.images.read import (
    decode_image,
    image_of_data_url,
    picture_pixels,
    read_image,
    resized,
    starting_image,
)
from max_zimage.serving.http import remote_images
from tests.fuzzers.image_cases import chunk, exif
from tests.references.start_images import eight_bits, upright

PIXELS = np.random.default_rng(3).integers(0, 256, (32, 48, 3), np.uint8)


def file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims to be as large as it is told."""
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_way_in_turns_the_image(orientation: int, tmp_path: Path) -> None:
    content = file(Image.fromarray(PIXELS), exif=b"Exif\0\0" + exif(orientation))
    (tmp_path / "picture.jpg").write_bytes(content)  # a PNG, whatever it is called
    expected = upright(PIXELS, orientation)
    for found in (
        decode_image("image", content),
        picture_pixels("image", Image.open(io.BytesIO(content))),
        read_image("image", tmp_path / "picture.jpg"),
        starting_image("image", Image.open(io.BytesIO(content)), (512, 512)),
    ):
        np.testing.assert_array_equal(found, expected)


def test_greys_of_16_bits_are_scaled() -> None:
    values = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48) * 42
    expected = np.repeat(eight_bits(values)[..., None], 3, axis=2)
    grey = Image.fromarray(values)
    np.testing.assert_array_equal(decode_image("image", file(grey)), expected)
    big_endian = Image.frombytes("I;16B", (48, 32), values.astype(">u2").tobytes())
    for picture in (grey, big_endian, grey.convert("I"), Image.open(io.BytesIO(file(grey)))):
        np.testing.assert_array_equal(picture_pixels("image", picture), expected)
    with pytest.raises(RequestError, match="mode I and no value above 200: whether it holds greys of 8 or 16 bits"):
        picture_pixels("image", Image.new("I", (8, 8), 200))
    with pytest.raises(RequestError, match="mode F, greys as floating-point numbers"):
        picture_pixels("image", Image.new("F", (8, 8), 0.5))


def test_what_pillow_opened_and_cannot_decode_is_refused() -> None:
    content = file(Image.fromarray(PIXELS))
    closed = Image.open(io.BytesIO(content))
    closed.close()
    for picture in (closed, Image.open(io.BytesIO(content[:-500]))):
        with pytest.raises(RequestError, match=r"image cannot be decoded .*; open it again"):
            picture_pixels("image", picture)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (PIXELS / 255, "float64 .*; scale it to 0 to 255"),
        (PIXELS[..., 0], "uint8 .*; PIL.Image.fromarray makes a picture of greys"),
        (np.dstack([PIXELS, PIXELS[..., :1]]), "uint8 .*; leave the alpha channel out"),
        (PIXELS[None], "uint8 .*; a single picture"),
        (Path("star.png"), "PosixPath; open it with PIL.Image.open"),
        ([Image.fromarray(PIXELS)], "list; convert it before"),
    ],
    ids=["floats", "greys", "alpha", "batch", "path", "list"],
)
def test_what_is_no_picture_says_how_it_becomes_one(value: object, remedy: str) -> None:
    with pytest.raises(RequestError, match=rf"image must be a PIL image or a uint8 array .*, got {remedy}"):
        starting_image("image", value, (512, 512))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.png", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(RequestError, match=f"image {path} cannot be read: {reason}"):
            read_image("image", path)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_text_takes_no_memory_and_loses_no_picture(kind: bytes) -> None:
    """128 MiB of text in 130 KiB, which Pillow refuses."""
    plain = file(Image.fromarray(PIXELS))
    text = (b"c\0\0" if kind == b"zTXt" else b"c\0\1\0\0\0") + zlib.compress(bytes(2**27))
    for place in (33, len(plain) - 12):
        content = plain[:place] + chunk(kind, text) + plain[place:]
        tracemalloc.start()
        np.testing.assert_array_equal(decode_image("image", content), PIXELS)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24


def test_what_an_address_holds_is_read_as_any_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = file(Image.fromarray(PIXELS))
    content = plain[:33] + chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(2**21))) + plain[33:]

    async def resolve(reference: object, settings: object, media_kind: str) -> bytes:
        return content

    monkeypatch.setattr(remote_images, "resolve_image_from_url", resolve)
    state: Any = SimpleNamespace(
        settings=SimpleNamespace(allow_remote_images=True),
        served=SimpleNamespace(limits=SimpleNamespace(body_bytes=2**20, input_pixels=2**20)),
    )
    url = asyncio.run(remote_images.fetched(state, "image", "https://example.com/picture"))
    np.testing.assert_array_equal(image_of_data_url("image", url), PIXELS)


def test_of_a_phones_two_pictures_the_first_is_taken() -> None:
    first, second = Image.fromarray(PIXELS), Image.new("RGB", (16, 16), "red")
    content = file(first, "MPO", save_all=True, append_images=[second], quality=100, subsampling=0)
    assert Image.open(io.BytesIO(content)).format == "MPO"
    for found in (decode_image("image", content), picture_pixels("image", Image.open(io.BytesIO(content)))):
        assert found.shape == PIXELS.shape
        assert np.abs(found.astype(int) - PIXELS).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_what_moves_is_refused_from_pillow_too(kind: str) -> None:
    frames = [Image.fromarray(np.roll(PIXELS, place)) for place in range(3)]
    content = file(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(RequestError, match="image is animated"):
        picture_pixels("image", Image.open(io.BytesIO(content)))
    pages = file(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    with pytest.raises(RequestError, match="image has several pages; send a single picture"):
        picture_pixels("image", Image.open(io.BytesIO(pages)))
    if kind != "GIF":
        with pytest.raises(RequestError, match="image is animated"):
            decode_image("image", content)


@pytest.mark.parametrize(
    ("picture", "options"),
    [
        (Image.fromarray(PIXELS), {"transparency": tuple(int(part) for part in PIXELS[3, 4])}),
        (Image.fromarray(PIXELS[..., 0]), {"transparency": int(PIXELS[3, 4, 0])}),
        (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200), {"transparency": int(PIXELS[3, 4, 0]) * 200}),
        (Image.fromarray(PIXELS).quantize(16), {"transparency": b"\xff" * 3 + b"\x80"}),
        (Image.fromarray(PIXELS[..., :2], "LA"), {}),
    ],
    ids=["RGB key", "grey key", "16-bit key", "palette", "LA"],
)
def test_transparency_is_found_whatever_says_it(picture: Image.Image, options: dict[str, Any]) -> None:
    content = file(picture, **options)
    for read in (
        lambda: decode_image("image", content),
        lambda: picture_pixels("image", Image.open(io.BytesIO(content))),
        lambda: starting_image("image", Image.open(io.BytesIO(content)), (512, 512)),
    ):
        with pytest.raises(RequestError, match="image has transparent pixels"):
            read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "image is empty; send a PNG, JPEG or WebP file"),
        (b"GIF89a", "image is a GIF file; convert it to PNG, JPEG or WebP"),
        (b"\0\0\0\x18ftypheic", "image is a HEIC file; convert it"),
        (b"\0\0\0\x18ftypavif", "image is an AVIF file; convert it"),
        (b"<!DOCTYPE html><html>", "image is an HTML file; convert it"),
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
    ids=["empty", "gif", "heic", "avif", "html", "bmp", "cut", "large", "bomb", "overflow", "animated", "transparent"],
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
        ("data:image/png;base64,AAAA", "is no PNG, JPEG or WebP file; send one of these"),
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
