"""Any of Pillow's pictures as opaque pixels of sRGB: 8 bits, three colours, upright.

A colour profile is applied relative to white, with black as black: colours that sRGB has stay what they are. One that
moves no colour by more than a level is sRGB under another name and leaves every level as it is.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile

from max_zimage.errors import Item, RequestError
from max_zimage.images.colour_profiles import HDR_TRANSFERS, profile_of_code_points, profile_of_numbers
from max_zimage.images.files import without_warnings

Pixels = npt.NDArray[np.uint8]

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_WITH_ALPHA = {"LA": "L", "La": "L", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB"}
_OPAQUE = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
_SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}  # what a profile calls the colours of a mode
_STRIP_PIXELS = 2**16
_KEY_SCALES = {"L;2": 85, "L;4": 17}  # Pillow stretches these greys to 255, and their key not


def to_srgb(name: str | Item, picture: Image.Image, layout: Layout) -> Pixels:
    """Turn a decoded picture into pixels.

    Args:
        name: What messages call it.
        picture: Decoded, of any mode.
        layout: What its header said.

    Returns:
        uint8 [height, width, 3].

    Raises:
        RequestError: If it has transparent pixels, or values whose meaning cannot be told.
    """
    if layout.is_grey:
        picture = picture.convert("LA")
    if _is_transparent(picture, layout.key):
        raise RequestError.of(
            name, "{field} has transparent pixels, which have no colour here; put it on a background before"
        )
    turn = _TURNS.get(_orientation(picture))
    coloured = _in_srgb(name, picture)
    return np.asarray(coloured if turn is None else coloured.transpose(turn))


def upright_alpha(picture: Image.Image) -> Pixels | None:
    """How opaque a decoded picture is, uint8 [height, width]; None if it says nothing of it."""
    if picture.mode not in (*_WITH_ALPHA, "P") and "transparency" not in picture.info:
        return None
    if picture.mode == "P" and not picture.has_transparency_data:
        return None
    found = picture.getchannel("a") if picture.mode == "La" else picture.convert("RGBA").getchannel("A")
    turn = _TURNS.get(_orientation(picture))
    return np.asarray(found if turn is None else found.transpose(turn))


@dataclass(frozen=True)
class Layout:
    """What a file's header says and the decoded picture no longer does.

    Attributes:
        key: The value of transparent pixels, as the decoded pixels will hold it; None without one.
        is_grey: Whether a picture in colours is one of greys: Pillow opens greys of 16 bits with alpha so.
    """

    key: object
    is_grey: bool


def layout(picture: Image.Image) -> Layout:
    """The layout of a picture that is not decoded yet; of one that is, what Pillow kept."""
    key = picture.info.get("transparency")
    tiles = picture.tile if isinstance(picture, ImageFile) else ()
    raw_mode = str(tiles[0].args) if tiles else ""
    if isinstance(key, int) and picture.mode == "L":
        key *= _KEY_SCALES.get(raw_mode, 1)
    elif isinstance(key, tuple) and picture.mode == "RGB" and raw_mode == "RGB;16B":
        key = tuple(part >> 8 for part in key)  # as Pillow does with the pixels: their neighbours count as well
    return Layout(key, raw_mode == "LA;16B")


def _is_transparent(picture: Image.Image, key: object) -> bool:
    mode = picture.mode
    if mode in _WITH_ALPHA:
        return bool(np.asarray(picture if mode != "PA" else picture.convert("RGBA"))[..., -1].min() < 255)
    if mode == "P":
        return bool(picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255)
    if key is None or mode not in ("1", "L", "RGB", "I", *_SIXTEEN_BITS):
        return False
    pixels = np.asarray(picture.convert("L") if mode == "1" else picture)
    try:
        return bool((pixels == np.asarray(key, np.int64)).reshape(*pixels.shape[:2], -1).all(2).any())
    except (TypeError, ValueError):  # of another mode: nothing that these pixels could have
        return False


def _orientation(picture: Image.Image) -> int:
    try:
        with without_warnings():
            value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises nearly anything on damaged data: nothing is known then, and nothing turned
        return 1
    return value if isinstance(value, int) else 1


def _plain(name: str | Item, picture: Image.Image) -> Image.Image:
    """A picture in mode L, RGB, CMYK or LAB, of the same colours."""
    mode = picture.mode
    if mode in ("CMYK", "LAB"):
        return picture
    if mode == "La":  # premultiplied by an alpha that is opaque: as it stands
        return Image.fromarray(np.ascontiguousarray(np.asarray(picture)[..., 0]))
    if mode == "RGBa":
        return Image.fromarray(np.ascontiguousarray(np.asarray(picture)[..., :3]))
    if mode == "P":
        return picture.convert("RGBA").convert("RGB")
    if mode in _WITH_ALPHA or mode in _OPAQUE:
        return picture.convert((_WITH_ALPHA | _OPAQUE)[mode])
    if mode in _SIXTEEN_BITS or mode == "I":
        return Image.fromarray(_eight_bits(name, np.asarray(picture), mode))
    if mode == "F":
        raise RequestError.of(
            name,
            "{field} has mode F, greys as floating-point numbers, which no range is agreed on for; scale them to 0 to "
            "255 and convert it to L",
        )
    raise RequestError.of(name, "{field} has mode {mode}, which is not known; convert it to RGB", mode=mode)


def _eight_bits(name: str | Item, values: npt.NDArray[np.generic], mode: str) -> Pixels:
    """Greys of 16 bits in 8, rounded to the nearest."""
    wide = values.astype(np.int64)
    if mode == "I":  # of 32 bits: Pillow keeps greys of 16 bits in it, and those of 8 that were converted to it
        low, high = int(wide.min()), int(wide.max())
        if low < 0 or high > 65535:
            raise RequestError.of(
                name,
                "{field} has mode I with values from {low} to {high}, greys must be from 0 to 65535; scale it before",
                low=low,
                high=high,
            )
        if 0 < high <= 255:
            raise RequestError.of(
                name,
                "{field} has mode I and no value above {high}: whether it holds greys of 8 or 16 bits cannot be told; "
                "convert it to L or I;16",
                high=high,
            )
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)


def _in_srgb(name: str | Item, picture: Image.Image) -> Image.Image:
    plain = _plain(name, picture)
    if plain.mode == "LAB":
        return _by_strips(plain, _transform(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB"))
    problem = None
    try:
        content, described = _profile(name, picture, plain.mode)
        if content is not None:
            profile = ImageCms.getOpenProfile(io.BytesIO(content))
            space = str(profile.profile.xcolor_space)
            if described and plain.mode == "L":
                plain = plain.convert("RGB")
            if space == "GRAY" and _is_grey(plain):
                plain = plain.getchannel(0)
            if space != _SPACES[plain.mode]:
                problem = f"is for {space.strip()} colours and the picture's are {_SPACES[plain.mode].strip()}"
            else:
                return _converted(plain, _transform(profile, plain.mode))
    except (ImageCms.PyCMSError, ValueError, OSError) as error:
        problem = f"cannot be used ({' '.join(str(error).split())[:100]})"
        if isinstance(error, RequestError):
            raise
    if problem:
        warnings.warn(f"{name}: its colour profile {problem}; it is taken as if it had none", stacklevel=5)
    return plain.convert("RGB")


def _profile(name: str | Item, picture: Image.Image, mode: str) -> tuple[bytes | None, bool]:
    """The ICC profile of a picture, None for sRGB; and whether numbers of a PNG stand for it, which greys have too.

    The order is that of the PNG specification: cICP, iCCP, sRGB, gAMA with cHRM.
    """
    info = picture.info
    if "cicp" in info:
        primaries, transfer, matrix, is_full = info["cicp"]
        if transfer in HDR_TRANSFERS:
            raise RequestError.of(
                name,
                "{field} has the colours of high dynamic range ({transfer}); save it in sRGB before",
                transfer=HDR_TRANSFERS[transfer],
            )
        if matrix == 0 and is_full == 1 and 2 not in (primaries, transfer):
            return profile_of_code_points(primaries, transfer), True
    content = info.get("icc_profile")
    if content is not None:
        return bytes(content), False
    if "srgb" in info or mode == "CMYK" or not ("gamma" in info or "chromaticity" in info):
        return None, False
    return profile_of_numbers(info.get("gamma"), info.get("chromaticity")), True


def _transform(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    """From a profile's colours to sRGB."""
    return ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        # LittleCMS's tables are too coarse for dark greys and for all of Lab; they save seconds for more colours.
        ImageCms.Flags.BLACKPOINTCOMPENSATION
        | (ImageCms.Flags.NOOPTIMIZE if mode in ("L", "LAB") else ImageCms.Flags.HIGHRESPRECALC),
    )


def _converted(plain: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """A picture after a transform, or as it is if that moves no colour by more than a level."""
    if plain.mode == "L":
        greys = np.arange(256, dtype=np.uint8)[None]
        made = np.asarray(transform.apply(Image.fromarray(greys)))[0]
        return plain.convert("RGB") if _is_near(made, greys[0, :, None]) else Image.fromarray(made[np.asarray(plain)])
    if plain.mode == "RGB":
        steps = np.linspace(0, 255, 16).round().astype(np.uint8)
        probe = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(64, 64, 3)
        if _is_near(np.asarray(transform.apply(Image.fromarray(probe))), probe):
            return plain
    return _by_strips(plain, transform)


def _by_strips(picture: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """Apply a transform to some rows at a time: Pillow holds Python's lock meanwhile, and a server serves others."""
    width, height = picture.size
    rows = max(1, _STRIP_PIXELS // width)
    made = Image.new("RGB", picture.size)
    for top in range(0, height, rows):
        made.paste(transform.apply(picture.crop((0, top, width, min(top + rows, height)))), (0, top))
    return made


def _is_grey(picture: Image.Image) -> bool:
    """Whether all colours are greys, which have grey profiles too after a conversion to RGB."""
    return picture.mode == "RGB" and bool(np.ptp(np.asarray(picture), axis=2).max() == 0)


def _is_near(made: Pixels, given: Pixels) -> bool:
    return bool(np.abs(made.astype(np.int64) - given).max() <= 1)
