"""Pictures on disk: PNG, JPEG and WebP that carry the parameters they were drawn with.

The parameters are one JSON object, in a PNG as the text chunk "parameters", in a JPEG and a WebP as the EXIF user
comment. Nothing is ever overwritten, and a file appears under its name only once it is complete.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin

from max_zimage.images.files import warnings_raised
from max_zimage.version import PROGRAM


class ImageFileError(ValueError):
    """A picture cannot be written where asked, or cannot be read, or holds no parameters."""


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File name endings and the format each stands for."""

_TEXT_KEY = "parameters"
# EXIF 2.3: a user comment begins with eight bytes that name its encoding.
_ASCII, _UNICODE = b"ASCII\0\0\0", b"UNICODE\0"
# A JPEG segment has a 16-bit length; EXIF's own headers take some of it.
_MAX_JPEG_COMMENT = 65_000
# Written without loss but where the format has only lossy coding.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


def check_writable(path: Path) -> None:
    """Fail now rather than after minutes of work if a picture cannot be saved here.

    Args:
        path: The file to be; its folder must exist.

    Raises:
        ImageFileError: If the ending names no known format, the path is a folder, or its folder is missing or does
            not let files be created.
    """
    _format_of(path)
    check_folder(path)


def check_folder(path: Path) -> None:
    """`check_writable` for a file of any format."""
    folder = path.parent
    with _reported(path):
        if path.is_dir():
            raise ImageFileError(f"{path} is a folder; name a file in it, such as {path / 'picture.png'}")
        if not folder.exists():
            raise ImageFileError(f"folder {folder} does not exist; create it or choose another one")
        if not folder.is_dir():
            raise ImageFileError(f"{folder} is a file, so {path.name} cannot be saved in it; choose a folder")
        with _temporary_sibling(path):
            pass


def next_free_paths(path: Path, count: int) -> list[Path]:
    """Return names for pictures, none of which exists yet.

    Args:
        path: The wanted name. One picture gets it, or name-1, name-2, … where it is taken; several get name-0,
            name-1, … from the first number after which enough are free.
        count: Pictures, at least 1.

    Returns:
        `count` paths.
    """

    def numbered(number: int) -> Path:
        return path.with_name(f"{path.stem}-{number}{path.suffix}")

    if count == 1 and not path.exists():
        return [path]
    start = 1 if count == 1 else 0
    while True:
        wanted = [numbered(start + offset) for offset in range(count)]
        taken = [offset for offset, candidate in enumerate(wanted) if candidate.exists()]
        if not taken:
            return wanted
        start += taken[-1] + 1


def save_image(pixels: npt.NDArray[np.uint8], path: Path, parameters: str) -> None:
    """Save a picture with its parameters inside.

    Args:
        pixels: uint8 [height, width, 3], RGB.
        path: A file that does not exist yet; its ending chooses PNG, JPEG (quality 95) or WebP (lossless).
        parameters: What the picture was drawn with, as JSON; empty for nothing.

    Raises:
        TypeError: If the pixels are not uint8.
        ValueError: If they are not [height, width, 3].
        ImageFileError: If the file exists or cannot be written; nothing is left behind.
    """
    save_new(path, encode_image(pixels, _format_of(path), parameters))


def save_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet, whole or not at all.

    Raises:
        ImageFileError: If the file exists or cannot be written; nothing is left behind.
    """
    with _reported(path), _temporary_sibling(path) as temporary:
        temporary.write_bytes(content)
        # Taking the name first is what makes two programs that save the same name at once both safe.
        path.touch(exist_ok=False)
        try:
            os.replace(temporary, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def encode_image(
    pixels: npt.NDArray[np.uint8], kind: str, parameters: str = "", compression: int | None = None
) -> bytes:
    """Encode a picture.

    Args:
        pixels: uint8 [height, width, 3], RGB.
        kind: "PNG", "JPEG" or "WEBP".
        parameters: JSON from `GenerationParameters.to_json` that the picture will carry; empty for none.
        compression: Quality of JPEG and WebP from 0 to 100; by default 95 for JPEG, and WebP without loss.

    Raises:
        TypeError: If the pixels are not uint8.
        ValueError: If they are not [height, width, 3].
        ImageFileError: If a JPEG cannot hold the parameters.
    """
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels must be uint8, got {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"pixels must be [height, width, 3], got {list(pixels.shape)}")
    options = dict(_SAVE_OPTIONS[kind])
    if compression is not None and kind != "PNG":
        options |= {"quality": compression, "lossless": False} if kind == "WEBP" else {"quality": compression}
    if parameters:
        options |= _embedded(parameters, kind)
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, format=kind, **options)
    return content.getvalue()


def embedded_text(path: Path) -> str:
    """Return the text that `save_image` put into a picture.

    Raises:
        ImageFileError: If there is no such file, it is no picture, is damaged, or holds no such text.
    """
    if not path.is_file():
        raise ImageFileError(f"{path} is no file; name a picture that max_zimage saved")
    try:
        # Pillow only warns of damaged EXIF data and goes on without it.
        with warnings_raised(), Image.open(path) as picture:
            picture.load()
            text = _embedded_text(picture)
    # Pillow's decoders raise nearly anything on damaged data: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        raise ImageFileError(f"{path} is not a picture, or a damaged one: {error}") from error
    if text is None:
        raise ImageFileError(f"{path} holds no generation parameters; only pictures saved by max_zimage do")
    return text


def _format_of(path: Path) -> str:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        given = f"{path.suffix!r}" if path.suffix else "none"
        raise ImageFileError(f"{path.name}: the ending must be one of {', '.join(FORMATS)}, got {given}")
    return kind


def _embedded(text: str, kind: str) -> dict[str, Any]:
    """Pillow's save options that put the parameters inside."""
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(_TEXT_KEY, text)
        return {"pnginfo": chunks}
    comment = _ASCII + text.encode("ascii") if text.isascii() else _UNICODE + text.encode("utf-16-be")
    if kind == "JPEG" and len(comment) > _MAX_JPEG_COMMENT:
        raise ImageFileError(
            f"a JPEG holds at most {_MAX_JPEG_COMMENT} bytes of parameters, these take {len(comment)}; save as .png"
        )
    exif = Image.Exif()
    exif.endian = ">"  # so that the comment's UTF-16 has the byte order of the rest, as readers expect
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: comment}
    return {"exif": exif}


def _embedded_text(picture: Image.Image) -> str | None:
    if isinstance(picture, PngImagePlugin.PngImageFile):
        text = picture.text.get(_TEXT_KEY)
        return None if text is None else str(text)
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if not isinstance(comment, bytes):
        return None
    encodings = {_ASCII: "ascii", _UNICODE: "utf-16-be"}
    encoding = encodings.get(comment[:8])
    return None if encoding is None else comment[8:].decode(encoding)


@contextlib.contextmanager
def _temporary_sibling(path: Path) -> Iterator[Path]:
    """An empty file of a unique name beside `path`; gone at the end unless it was renamed."""
    temporary = path.with_name(f".{PROGRAM}-{secrets.token_hex(8)}.part")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise ImageFileError(f"{path} exists and is not overwritten; choose another name") from error
    except OSError as error:
        raise ImageFileError(f"{path} cannot be written: {error.strerror or error}") from error
