"""Bytes of a PNG, JPEG or WebP file that nobody vouches for, opened: the header is read, no pixel is decoded.

Pillow's plugins are called by name, which opens nothing else. They get of a PNG what bears on its pixels alone: text
may be compressed a thousandfold, and Pillow refuses the whole file for it.

Reference: PNG specification, third edition, section 11; WebP container specification.
"""

from __future__ import annotations

import io
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from max_zimage.errors import Item, RequestError

KINDS = "PNG, JPEG or WebP"
MAX_PROFILE_BYTES = 16 * 2**20
"""Of a colour profile when unpacked: the most that a JPEG's segments can hold."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_KEPT_CHUNKS = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"eXIf"])
_MAX_TEXT = 2**20
# Text chunks that say how a picture is turned: XMP, and the EXIF data of older ImageMagick.
_TEXTS = {b"XML:com.adobe.xmp": "XML:com.adobe.xmp", b"Raw profile type exif": "Raw profile type exif"}
_OTHERS = (  # begins with, what it is called
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"II+\0", "a TIFF"),
    (b"MM\0+", "a TIFF"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\1\0", "an ICO"),
    (b"8BPS", "a Photoshop"),
    (b"%PDF", "a PDF"),
    (b"qoif", "a QOI"),
    (b"v/1\1", "an OpenEXR"),
    (b"DDS ", "a DDS"),
    (b"\x8aMNG", "an MNG"),
    (b"gimp xcf", "a GIMP"),
    (b"PK\3\4", "a ZIP"),
    (b"\x1f\x8b", "a gzip"),
    (b"<svg", "an SVG"),
    (b"<?xml", "an XML or SVG"),
    (b"<!doctype html", "an HTML"),
    (b"<html", "an HTML"),
    (b"P1", "a PBM"),
    (b"P2", "a PGM"),
    (b"P3", "a PPM"),
    (b"P4", "a PBM"),
    (b"P5", "a PGM"),
    (b"P6", "a PPM"),
)
_BRANDS = {b"avif": "an AVIF", b"avis": "an AVIF", b"mif1": "a HEIF", b"msf1": "a HEIF", b"crx ": "a Canon RAW"}
_quiet = threading.Lock()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep Pillow's warnings about damaged metadata off a server's log; for what reads a header, and is short.

    Filters belong to the process: a second thread would put back those of the first.
    """
    with _quiet, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


@contextmanager
def warnings_raised() -> Iterator[None]:
    """Have Pillow's warnings end what they are about: it warns of damaged EXIF data, and goes on without it.

    Of no other module's: another thread's warning is none of an image.
    """
    with _quiet, warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"PIL\b")
        yield


def open_image(name: str | Item, content: bytes, max_pixels: int) -> tuple[Image.Image, str]:
    """Read an image's header.

    Args:
        name: What messages call it.
        content: A PNG, JPEG or WebP file. What follows its end is left aside, as is all but the first picture of a
            JPEG: phones put a second one there.
        max_pixels: Height times width.

    Returns:
        The picture, not decoded yet, and what its kind of file is called.

    Raises:
        RequestError: If it is of another kind, damaged, animated or too large.
    """
    if not content:
        raise RequestError.of(name, "{field} is empty; send a {kinds} file", kinds=KINDS)
    if content.startswith(_JPEG):
        return _opened(name, JpegImageFile, content, "JPEG"), "JPEG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        check_size(name, *_webp_size(content), max_pixels)
        return _opened(name, WebPImageFile, content, "WebP"), "WebP"
    if content.startswith(_PNG):
        return _png(name, content), "PNG"
    found = _other_kind(content)
    if found:
        raise RequestError.of(name, "{field} is {found} file; convert it to {kinds}", found=found, kinds=KINDS)
    raise RequestError.of(name, "{field} is no {kinds} file; send one of these", kinds=KINDS)


def check_size(name: str | Item, width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that is too large to be decoded."""
    if width * height > max_pixels:
        raise RequestError.of(
            name,
            "{field} has {width}x{height} pixels, at most {most} are allowed; send a smaller one",
            width=width,
            height=height,
            most=max_pixels,
        )


def check_picture(name: str | Item, content: bytes, max_pixels: int) -> None:
    """Refuse what is no picture, or one that is too large to be decoded; arguments and errors are of `open_image`."""
    picture, _ = open_image(name, content, max_pixels)
    with picture:
        check_size(name, *picture.size, max_pixels)


def damaged(name: str | Item, kind: str | None, error: Exception) -> RequestError:
    """What is said of a file that a decoder gives up on; without a kind, of a picture that somebody else opened."""
    # Of the others, such as a struct.error or a SyntaxError made of it, only Pillow's authors could make anything.
    is_clear = isinstance(error, (OSError, ValueError)) or (isinstance(error, SyntaxError) and error.__cause__ is None)
    reason = f" ({' '.join(str(error).split())[:100]})" if is_clear and str(error) else ""
    if kind is None:
        message = "{field} cannot be decoded{reason}; open it again, and close its file only after load()"
        return RequestError.of(name, message, reason=reason)
    message = "{field} is a damaged {kind} file, or of a rare kind{reason}; save it again and send that"
    return RequestError.of(name, message, kind=kind, reason=reason)


def _opened(name: str | Item, plugin: type[Image.Image], content: bytes, kind: str) -> Image.Image:
    try:
        with without_warnings():
            return plugin(io.BytesIO(content))  # type: ignore[call-arg]
    except Image.DecompressionBombError as error:  # Pillow's own limit, for a server whose limit is higher
        raise RequestError.of(name, "{field} has too many pixels ({error}); send a smaller one", error=error) from error
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged data
        raise damaged(name, kind, error) from error


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height: Pillow's plugin asks for the memory of a whole picture when it reads the header."""
    kind, rest = content[12:16], content[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(rest[4:7], "little") + 1, int.from_bytes(rest[7:10], "little") + 1
    if kind == b"VP8L":
        sides = int.from_bytes(rest[1:5], "little")
        return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    return int.from_bytes(rest[6:8], "little") & 0x3FFF, int.from_bytes(rest[8:10], "little") & 0x3FFF


def _png(name: str | Item, content: bytes) -> Image.Image:
    """A PNG from the chunks that bear on its pixels; the colour profile and cICP go into its info beside Pillow's."""
    view, place, kept = memoryview(content), len(_PNG), [memoryview(_PNG)]
    found: dict[str, object] = {}
    begun = False
    while place + 12 <= len(content):
        length, kind = int.from_bytes(view[place : place + 4], "big"), bytes(view[place + 4 : place + 8])
        data = view[place + 8 : place + 8 + length]
        if kind == b"acTL" and not begun and int.from_bytes(data[:4], "big") > 1:
            raise RequestError.of(name, "{field} is animated; send a single picture")
        if kind in _KEPT_CHUNKS:
            kept.append(view[place : place + 12 + length])
        elif kind == b"iCCP" and not begun:
            found.setdefault("icc_profile", _profile(data))
        elif kind == b"cICP" and not begun and length == 4:
            found.setdefault("cicp", tuple(data))
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            found.update(_turning_text(kind, data))
        begun = begun or kind == b"IDAT"
        place += 12 + length
        if kind == b"IEND":
            break
    picture = _opened(name, PngImageFile, b"".join(kept), "PNG")
    picture.info.update(found)
    return picture


def _unpacked(data: bytes, most: int) -> bytes | None:
    """What was compressed; None if it is damaged or more than that."""
    unpacker = zlib.decompressobj()
    try:
        result = unpacker.decompress(data, most)
    except zlib.error:
        return None
    return result if unpacker.eof else None


def _profile(data: memoryview) -> bytes:
    """An iCCP chunk's profile; empty if there is none to be had, which is a damaged profile too."""
    _, _, rest = bytes(data).partition(b"\0")
    return _unpacked(rest[1:], MAX_PROFILE_BYTES) or b""


def _turning_text(kind: bytes, data: memoryview) -> dict[str, object]:
    """A text chunk under the name Pillow looks for, if it may say how the picture is turned."""
    keyword, _, rest = bytes(data[:80]).partition(b"\0")
    if keyword not in _TEXTS or len(data) > _MAX_TEXT:
        return {}
    rest = bytes(data[len(keyword) + 1 :])
    packed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        rest = rest[2:].split(b"\0", 2)[-1]
    text = _unpacked(rest, _MAX_TEXT) if packed else rest
    return {} if text is None else {_TEXTS[keyword]: text.decode("utf-8", "replace")}


def _other_kind(content: bytes) -> str | None:
    """What a file is called that is not taken, by how it begins."""
    if content[4:8] == b"ftyp":
        brand = content[8:12]
        return _BRANDS.get(brand, "a HEIC" if brand[:3] in (b"hei", b"hev") else "a video")
    begin = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, called in _OTHERS:
        if content.startswith(magic) or (magic[:1] == b"<" and begin.startswith(magic)):
            return called
    return None
