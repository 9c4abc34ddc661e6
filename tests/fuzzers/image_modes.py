"""Pillow's pictures of every mode, as a Python caller may make or open them, with the pixels they stand for."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.fuzzers.image_cases import ONE, Case, Generator, exif
from tests.references.start_images import (
    ADOBE,
    Levels,
    eight_bits,
    in_srgb,
    lab_of_srgb,
    naive_rgb,
    srgb_of_lab,
    upright,
)

Made = tuple[Image.Image, Levels | None, int]  # the picture, its pixels or None for a refusal, and the tolerance
_LOSSLESS = ("BMP", "TIFF", "PPM", "TGA", "JPEG2000", "GIF")


def picture(rng: Generator) -> Case:
    """A picture of any mode, turned by its EXIF data, some with a profile."""
    height, width = (int(side) for side in rng.integers(1, 24, 2))
    levels = rng.integers(0, 256, (height, width, 3), np.uint8)
    name = str(rng.choice(list(_MAKERS)))
    made, expected, tolerance = _MAKERS[name](rng, levels)
    orientation = int(rng.integers(0, 10))
    label = f"{name}, EXIF {orientation}"
    if not isinstance(made.format, str):
        made.info["exif"] = exif(orientation)
        if made.mode in ("RGB", "RGBA", "P") and rng.random() < 0.3:
            made.info["icc_profile"], label = ADOBE.profile, label + ", AdobeRGB"
            expected, tolerance = None if expected is None else in_srgb(expected, ADOBE), ONE
        expected = None if expected is None else upright(expected, orientation)
    refusal = "mode F" if name == "F" else "8 or 16 bits" if name == "dark I" else "transparent pixels"
    return Case(label, b"", expected, refusal, tolerance, picture=made)


def _alpha(rng: Generator, levels: Levels) -> tuple[Levels, bool]:
    """An alpha channel [height, width, 1], and whether all of it is opaque."""
    alpha = np.full((*levels.shape[:2], 1), 255, np.uint8)
    if rng.random() < 0.4:
        alpha[int(rng.integers(len(alpha))), int(rng.integers(alpha.shape[1]))] = rng.integers(0, 255)
    return alpha, bool(alpha.min() == 255)


def _grey(levels: Levels) -> Levels:
    return np.repeat(levels[..., :1], 3, axis=2)


def _with_alpha(mode: str, rng: Generator, levels: Levels) -> Made:
    alpha, is_opaque = _alpha(rng, levels)
    if mode == "PA":
        made = Image.fromarray(levels[..., 0], "P")
        palette = rng.integers(0, 256, (256, 3), np.uint8)
        made.putpalette(palette.tobytes())
        made = made.convert("PA")
        made.putalpha(Image.fromarray(alpha[..., 0]))
        return made, palette[levels[..., 0]] if is_opaque else None, 0
    colours = levels[..., :1] if mode in ("LA", "La") else levels
    bands = np.concatenate([colours, alpha], axis=2)
    made = Image.frombytes(mode, levels.shape[1::-1], bands.tobytes())
    expected = _grey(levels) if mode in ("LA", "La") else levels
    return made, expected if is_opaque else None, 0


def _bits(rng: Generator, levels: Levels) -> Made:
    return Image.fromarray(levels[..., 0] > 127), _grey(np.where(levels > 127, 255, 0).astype(np.uint8)), 0


def _palette(rng: Generator, levels: Levels) -> Made:
    made = Image.fromarray(levels[..., 0], "P")
    palette = rng.integers(0, 256, (256, 3), np.uint8)
    made.putpalette(palette.tobytes())
    if rng.random() < 0.5:
        key = int(rng.integers(256))
        made.info["transparency"] = key if rng.random() < 0.5 else bytes(255 * (place != key) for place in range(256))
        if (levels[..., 0] == key).any():
            return made, None, 0
    return made, palette[levels[..., 0]], 0


def _keyed(rng: Generator, levels: Levels) -> Made:
    """Grey or coloured, with a colour that stands for transparent pixels."""
    is_hit, is_grey = rng.random() < 0.5, rng.random() < 0.5
    if not is_hit:
        levels = levels // 2 * 2
    key = levels[-1, -1] | (0 if is_hit else 1)
    made = Image.fromarray(levels[..., 0] if is_grey else levels)
    made.info["transparency"] = int(key[0]) if is_grey else tuple(int(part) for part in key)
    return made, None if is_hit else _grey(levels) if is_grey else levels, 0


def _sixteen(mode: str, rng: Generator, levels: Levels) -> Made:
    values = rng.integers(0, 65536, levels.shape[:2]).astype(np.uint16)
    values[0, 0] = 65535
    expected = _grey(eight_bits(values)[..., None])
    if mode == "I":
        return Image.fromarray(values.astype(np.int32)), expected, 0
    stored = values.astype(">u2" if mode == "I;16B" else "<u2")
    return Image.frombytes(mode, levels.shape[1::-1], stored.tobytes()), expected, 0


def _dark(rng: Generator, levels: Levels) -> Made:
    return Image.fromarray(np.maximum(levels[..., 0], 1).astype(np.int32)), None, 0


def _floats(rng: Generator, levels: Levels) -> Made:
    return Image.fromarray(levels[..., 0].astype(np.float32)), None, 0


def _inks(rng: Generator, levels: Levels) -> Made:
    inks = np.concatenate([levels, rng.integers(0, 256, (*levels.shape[:2], 1), np.uint8)], axis=2)
    return Image.fromarray(inks, "CMYK"), np.round(naive_rgb(inks) * 255).astype(np.uint8), ONE


def _ycbcr(rng: Generator, levels: Levels) -> Made:
    """Reference: JFIF 1.02, page 3."""
    y, cb, cr = np.moveaxis(levels.astype(np.float64), 2, 0)
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 2)
    return Image.fromarray(levels, "YCbCr"), np.round(rgb.clip(0, 255)).astype(np.uint8), ONE


def _hsv(rng: Generator, levels: Levels) -> Made:
    flat = [colorsys.hsv_to_rgb(*(pixel / 255)) for pixel in levels.reshape(-1, 3)]
    expected = np.round(np.array(flat).reshape(levels.shape) * 255).astype(np.uint8)
    return Image.fromarray(levels, "HSV"), expected, 2 * ONE  # Pillow cuts where this rounds


def _lab(rng: Generator, levels: Levels) -> Made:
    lab = lab_of_srgb(levels / 255)
    offset = np.stack([lab[..., 0] * 2.55, lab[..., 1] + 128, lab[..., 2] + 128], 2).round().clip(0, 255)
    stored = offset.astype(np.uint8) ^ np.array([0, 128, 128], np.uint8)  # a* and b* are signed, as in TIFF
    shown = np.stack([offset[..., 0] / 2.55, offset[..., 1] - 128, offset[..., 2] - 128], 2)
    return Image.frombytes("LAB", levels.shape[1::-1], stored.tobytes()), srgb_of_lab(shown), 2 * ONE


def _opened(rng: Generator, levels: Levels) -> Made:
    """From a file of another kind, which the caller opened."""
    kind = str(rng.choice(_LOSSLESS))
    content = io.BytesIO()
    made = Image.fromarray(levels[..., 0] if kind == "GIF" else levels)
    made.save(content, kind)
    return Image.open(content), _grey(levels) if kind == "GIF" else levels, 0


def _plain(mode: str, rng: Generator, levels: Levels) -> Made:
    if mode == "L":
        return Image.fromarray(levels[..., 0]), _grey(levels), 0
    if mode == "RGBX":
        unused: npt.NDArray[np.uint8] = rng.integers(0, 256, (*levels.shape[:2], 1), np.uint8)
        return Image.frombytes("RGBX", levels.shape[1::-1], np.dstack([levels, unused]).tobytes()), levels, 0
    return Image.fromarray(levels), levels, 0


def _of(maker: Callable[[str, Generator, Levels], Made], mode: str) -> Callable[[Generator, Levels], Made]:
    return lambda rng, levels: maker(mode, rng, levels)


_MAKERS: dict[str, Callable[[Generator, Levels], Made]] = {
    **{mode: _of(_plain, mode) for mode in ("L", "RGB", "RGBX")},
    **{mode: _of(_with_alpha, mode) for mode in ("LA", "La", "PA", "RGBA", "RGBa")},
    **{mode: _of(_sixteen, mode) for mode in ("I;16", "I;16B", "I;16L", "I")},
    "1": _bits,
    "P": _palette,
    "colour key": _keyed,
    "dark I": _dark,
    "F": _floats,
    "CMYK": _inks,
    "YCbCr": _ycbcr,
    "HSV": _hsv,
    "LAB": _lab,
    "another format": _opened,
}
