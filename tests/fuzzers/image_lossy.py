"""JPEG and WebP files drawn at random, with the pixels they stand for."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
from PIL import Image

from tests.fuzzers.image_cases import LOSSY, ONE, Case, Colours, Generator, exif, noise, pick, profile_colours
from tests.references.start_images import SRGB, Levels, Space, cmyk_profile, in_srgb, naive_rgb, upright


def jpeg(rng: Generator) -> Case:
    """A JPEG of greys, colours or inks; some of two pictures, as phones make them."""
    height, width = rng.integers(1, 40, 2)
    mode = str(pick(rng, "L", "RGB", "RGB", "CMYK"))
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    values = noise(rng, (height, width, channels), 8).astype(np.uint8)
    picture = Image.fromarray(values.squeeze(2) if channels == 1 else values, mode)
    colours = Colours() if rng.random() < 0.5 or mode == "CMYK" else profile_colours(rng, is_grey=mode == "L")
    if mode == "CMYK" and rng.random() < 0.7:
        colours = Colours("inks' profile", profile=cmyk_profile())
    orientation = int(rng.integers(0, 10))
    is_pair = mode == "RGB" and rng.random() < 0.3
    buffer = io.BytesIO()
    options = {
        "quality": int(rng.integers(20, 101)),
        "progressive": bool(rng.integers(2)),
        "icc_profile": colours.profile or None,
        "exif": b"Exif\0\0" + exif(orientation),
    }
    if is_pair:
        picture.save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")], **options)
    else:
        picture.save(buffer, "JPEG", subsampling=int(rng.integers(3)), **options)
    content = buffer.getvalue()
    raw = imagecodecs.jpeg8_decode(content)
    label = f"JPEG {mode}{' of two' * is_pair}, {colours.label}, EXIF {orientation}"
    if mode == "CMYK":
        return _inks(label, content, 255 - raw, colours, orientation)
    levels = raw.reshape(height, width, channels)
    expected = in_srgb(levels, colours.space) if colours.space != SRGB else np.repeat(levels, 3 // channels, 2)
    return Case(
        label,
        content,
        upright(expected, orientation),
        tolerance=LOSSY if colours.space == SRGB else LOSSY + _slope(levels, colours.space),
        warns=colours.warns,
    )


def _slope(levels: Levels, space: Space) -> int:
    """What a level more or less in the file makes of the pixels."""
    up = in_srgb(np.minimum(levels, 254) + np.uint8(1), space).astype(int)
    return int(np.abs(up - in_srgb(levels, space)).max())


def _inks(label: str, content: bytes, inks: Levels, colours: Colours, orientation: int) -> Case:
    if not colours.profile:
        return Case(label, content, upright(np.round(naive_rgb(inks) * 255).astype(np.uint8), orientation), "", ONE)
    made = imagecodecs.cms_transform(
        np.ascontiguousarray(inks), colours.profile, imagecodecs.cms_profile("srgb"), colorspace="cmyk",
        outcolorspace="rgb", intent=1, flags=0x2000 | 0x0100,
    )  # fmt: skip
    return Case(
        label, content, upright(made, orientation), tolerance=12
    )  # tables against none: see the profile's kinks


def webp(rng: Generator) -> Case:
    """A WebP, lossless or not, with or without alpha, some animated."""
    height, width = rng.integers(1, 40, 2)
    values = noise(rng, (height, width, 4), 8).astype(np.uint8)
    alpha = str(pick(rng, "none", "none", "opaque", "clear"))
    if alpha != "clear":
        values[..., 3] = 255
    picture = Image.fromarray(values if alpha != "none" else np.ascontiguousarray(values[..., :3]))
    colours = Colours() if rng.random() < 0.5 else profile_colours(rng, is_grey=False)
    orientation = int(rng.integers(0, 10))
    is_lossless, is_animated = bool(rng.integers(2)), rng.random() < 0.1
    more = {"save_all": True, "append_images": [Image.new("RGB", picture.size, "red")]} if is_animated else {}
    buffer = io.BytesIO()
    picture.save(
        buffer, "WEBP", lossless=is_lossless, exif=b"Exif\0\0" + exif(orientation), icc_profile=colours.profile, **more
    )
    content = buffer.getvalue()
    label = f"WebP{' lossless' * is_lossless} alpha {alpha}, {colours.label}, EXIF {orientation}"
    if is_animated and imagecodecs.webp_check(content) is not None and b"ANMF" in content:
        return Case(label + " animated", content, None, "is animated")
    raw = imagecodecs.webp_decode(content)
    if raw.shape[-1] == 4 and raw[..., 3].min() < 255:
        return Case(label, content, None, "transparent pixels")
    levels = raw[..., :3]
    expected = in_srgb(levels, colours.space) if colours.space != SRGB else levels
    steps = ONE * (colours.space != SRGB)
    return Case(label, content, upright(expected, orientation), "", steps, warns=colours.warns)
