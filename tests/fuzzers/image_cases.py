"""Start images drawn at random, as files and as Pillow's pictures, with the pixels they stand for.

What a file's pixels are is read by imagecodecs, whose libpng, libjpeg-turbo and libwebp are its own; colours and turns
are worked out in numpy.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TypeVar

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.references.start_images import (
    ADOBE,
    BT709,
    COLOURED,
    GREYS,
    P3,
    SRGB,
    Levels,
    Space,
    eight_bits,
    in_srgb,
    upright,
)

Generator = np.random.Generator
# In levels. LittleCMS's eight bits are a level off at most; decoders of the lossy kinds may round their own way.
ONE, LOSSY = 1, 3


@dataclass(frozen=True)
class Case:
    """What is tried, and what should come of it.

    Attributes:
        label: What it is, in words.
        content: A file's bytes.
        expected: uint8 [height, width, 3]; None where it should be refused.
        refusal: A part of the message then.
        tolerance: Levels that a pixel may differ by.
        opens: Whether Pillow opens it for a Python caller and keeps all that it says.
        warns: Whether a warning should say that the profile is left aside.
        picture: One of Pillow's, in place of a file.
    """

    label: str
    content: bytes
    expected: Levels | None
    refusal: str = ""
    tolerance: int = 0
    opens: bool = True
    warns: bool = False
    picture: Image.Image | None = None


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif(orientation: int, *, big_endian: bool = True) -> bytes:
    """EXIF data of one tag, without the header of JPEG."""
    order = ">" if big_endian else "<"
    begin = (b"MM" if big_endian else b"II") + struct.pack(order + "HI", 42, 8)
    return begin + struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


_PNG = b"\x89PNG\r\n\x1a\n"
_BIG = zlib.compress(b"x" * 3 * 2**20)  # more than Pillow unpacks
_TEXTS = (  # and whether Pillow refuses them
    (chunk(b"tEXt", b"parameters\0{}"), False),
    (chunk(b"zTXt", b"c\0\0" + _BIG), True),
    (chunk(b"iTXt", b"c\0\1\0\0\0" + _BIG), True),
)


@dataclass
class Colours:
    """How a file says what its colours are."""

    label: str = "no profile"
    chunks: tuple[bytes, ...] = ()
    profile: bytes = b""
    space: Space = SRGB
    keeps: bool = True
    warns: bool = False


T = TypeVar("T")


def pick(rng: Generator, *choices: T) -> T:
    return choices[int(rng.integers(len(choices)))]


def profile_colours(rng: Generator, *, is_grey: bool) -> Colours:
    """An ICC profile: a good one, one for other colours, or a damaged one."""
    spaces = GREYS if is_grey else COLOURED
    name = str(pick(rng, *spaces))
    drawn = rng.random()
    if drawn < 0.15:
        other = COLOURED["P3"] if is_grey else GREYS["grey 1.8"]
        return Colours("profile of other colours", profile=other.profile, warns=True)
    if drawn < 0.25:
        content = spaces[name].profile
        broken = bytes(pick(rng, content[: len(content) // 3], b"no profile", rng.bytes(300)))
        return Colours("broken profile", profile=broken, warns=True)
    return Colours(f"{name} profile", profile=spaces[name].profile, space=spaces[name])


def _png_colours(rng: Generator, colour_type: int) -> Colours:
    is_grey = colour_type in (0, 4)
    points = struct.pack(">8I", *(round(part * 100000) for part in (*P3.white, *P3.primaries)))
    kind = int(rng.integers(8))
    if kind <= 1:
        return Colours()
    if kind == 2:
        found = profile_colours(rng, is_grey=is_grey)
        data = b"name\0\0" + zlib.compress(found.profile)
        gamma = chunk(b"gAMA", struct.pack(">I", 100000))  # the profile goes before it
        return Colours(found.label, (gamma, chunk(b"iCCP", data)), found.profile, found.space, warns=found.warns)
    if kind == 3:
        return Colours("sRGB", (chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100000))))
    if kind == 4:
        inverse = pick(rng, 45455, 45000, 100000, 55556)
        curve = None if inverse < 50000 else 100000 / inverse
        return Colours(f"gamma {inverse}", (chunk(b"gAMA", struct.pack(">I", inverse)),), space=Space(gamma=curve))
    if kind == 5:
        space = Space(primaries=P3.primaries, gamma=100000 / 55556)
        return Colours(
            "gamma and P3 points", (chunk(b"gAMA", struct.pack(">I", 55556)), chunk(b"cHRM", points)), space=space
        )
    if kind == 6:
        return Colours("P3 points", (chunk(b"cHRM", points),), space=P3)
    space, points_ = [
        (P3, (12, 13)),
        (Space(primaries=BT709, gamma=0), (1, 1)),
        (Space(primaries=(0.708, 0.292, 0.170, 0.797, 0.131, 0.046), gamma=0), (9, 14)),
        (SRGB, (1, 13)),
    ][int(rng.integers(4))]
    adobe = chunk(b"iCCP", b"name\0\0" + zlib.compress(ADOBE.profile))  # cICP goes before it
    return Colours(f"cICP {points_}", (adobe, chunk(b"cICP", bytes([*points_, 0, 1]))), space=space, keeps=False)


def noise(rng: Generator, shape: tuple[int, ...], bits: int) -> npt.NDArray[np.uint16]:
    """Values of all sizes: many pictures of noise alone would hide what happens at the ends."""
    values = rng.integers(0, 2**bits, shape)
    return np.where(rng.random(shape) < 0.1, pick(rng, 0, 2**bits - 1), values).astype(np.uint16)


def _rows(values: npt.NDArray[np.uint16], bits: int) -> bytes:
    """A PNG's rows without filters, [height, width, channels]."""
    flat = values.reshape(len(values), -1)
    if bits == 16:
        packed = flat.astype(">u2").view(np.uint8)
    elif bits == 8:
        packed = flat.astype(np.uint8)
    else:
        planes = (flat[..., None] >> np.arange(bits)[::-1]) & 1
        packed = np.packbits(planes.reshape(len(values), -1).astype(np.uint8), axis=1)
    return np.hstack([np.zeros((len(packed), 1), np.uint8), packed.reshape(len(values), -1)]).tobytes()


def _key(rng: Generator, colour_type: int, bits: int, values: npt.NDArray[np.uint16]) -> tuple[bytes, str]:
    """A tRNS chunk, which may or may not hit a pixel."""
    if colour_type in (4, 6) or rng.random() < 0.6:
        return b"", ""
    if colour_type == 3:
        alphas = np.where(rng.random(int(values.max()) + 1) < 0.9, 255, rng.integers(0, 256)).astype(np.uint8)
        return chunk(b"tRNS", alphas.tobytes()), " tRNS"
    hit = values[0, 0] if rng.random() < 0.5 else noise(rng, (values.shape[2],), bits)
    return chunk(b"tRNS", hit.astype(">u2").tobytes()), " tRNS"


def png(rng: Generator) -> Case:
    """A PNG of any colour type and depth."""
    colour_type, bits = [
        (0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 8), (2, 16),
        (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16),
    ][int(rng.integers(16))]  # fmt: skip
    height, width = rng.integers(1, 24, 2)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    values = noise(rng, (height, width, channels), bits)
    if channels in (2, 4) and rng.random() < 0.8:
        values[..., -1] = 2**bits - 1
    key, key_label = _key(rng, colour_type, bits, values)
    colours = _png_colours(rng, colour_type)
    orientation = int(rng.integers(0, 10))
    turn = chunk(b"eXIf", exif(orientation, big_endian=bool(rng.integers(2))))
    before = [*colours.chunks]
    if colour_type == 3:
        before.append(chunk(b"PLTE", rng.bytes(3 * 2**bits)))
    before.append(key)
    text, has_big_text = [(b"", False), (b"", False), *_TEXTS][int(rng.integers(5))]
    body, after = chunk(b"IDAT", zlib.compress(_rows(values, bits), 1)), chunk(b"IEND", b"")
    parts = [text, *before, turn, body] if rng.random() < 0.5 else [*before, body, text, turn]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    content = _PNG + header + b"".join(parts) + after + bytes(pick(rng, b"", b"junk" * 9))
    label = (
        f"PNG type {colour_type} of {bits} bits{key_label}, {colours.label}, EXIF {orientation}{' text' * has_big_text}"
    )
    # What says how the pixels look is no concern of the reference, which would only print its opinion.
    plain = b"".join([_PNG, header, *before[len(colours.chunks) :], body, after])
    levels = _eight_bits(imagecodecs.png_decode(plain), is_grey=colour_type == 0)
    opens = colours.keeps and not has_big_text
    if levels.shape[2] in (2, 4):
        if levels[..., -1].min() < 255:
            return Case(label, content, None, "transparent pixels", opens=opens)
        levels = levels[..., :-1]
    is_srgb = colours.space == SRGB
    expected = np.repeat(levels, 3 // levels.shape[2], 2) if is_srgb else in_srgb(levels, colours.space)
    return Case(label, content, upright(expected, orientation), "", 0 if is_srgb else ONE, opens, colours.warns)


def _eight_bits(raw: npt.NDArray[np.uint16], *, is_grey: bool) -> Levels:
    """Levels [height, width, channels]; Pillow keeps the upper 8 of 16 bits of all but plain greys."""
    raw = raw[..., None] if raw.ndim == 2 else raw
    if raw.dtype == np.uint8:
        return raw.astype(np.uint8)
    return eight_bits(raw) if is_grey else (raw >> 8).astype(np.uint8)
