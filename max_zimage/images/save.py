"""Pictures on disk: PNG, JPEG and WebP that carry the parameters they were drawn with, see `max_zimage.images.texts`.

Nothing is ever overwritten, and a file appears under its name only once it is complete.
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
from PIL import Image

from max_zimage.images.errors import ImageFileError as ImageFileError
from max_zimage.images.texts import save_options
from max_zimage.images.xmp import Source
from max_zimage.version import PROGRAM

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File name endings and the format each stands for."""

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


def save_image(
    pixels: npt.NDArray[np.uint8], path: Path, parameters: str, source: Source | None = Source.MODEL
) -> None:
    """Save a picture with its parameters inside.

    Args:
        pixels: uint8 [height, width, 3], RGB.
        path: A file that does not exist yet; its ending chooses PNG, JPEG (quality 95) or WebP (lossless).
        parameters: What the picture was drawn with, as JSON; empty for nothing.
        source: How it came to be; None for a file that says nothing.

    Raises:
        TypeError: If the pixels are not uint8.
        ValueError: If they are not [height, width, 3].
        ImageFileError: If the file exists or cannot be written; nothing is left behind.
    """
    save_new(path, encode_image(pixels, _format_of(path), parameters, source=source))


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
    pixels: npt.NDArray[np.uint8],
    kind: str,
    parameters: str = "",
    compression: int | None = None,
    source: Source | None = Source.MODEL,
    text: str = "",
) -> bytes:
    """Encode a picture.

    Args:
        pixels: uint8 [height, width, 3], RGB.
        kind: "PNG", "JPEG" or "WEBP".
        parameters: JSON from `GenerationParameters.to_json` that the picture will carry; empty for none.
        compression: Quality of JPEG and WebP from 0 to 100; by default 95 for JPEG, and WebP without loss.
        source: How it came to be; None for a file that says nothing, parameters included.
        text: What other tools read, where that is not what they read of `parameters`.

    Raises:
        TypeError: If the pixels are not uint8.
        ValueError: If they are not [height, width, 3].
    """
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels must be uint8, got {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"pixels must be [height, width, 3], got {list(pixels.shape)}")
    options = dict(_SAVE_OPTIONS[kind])
    if compression is not None and kind != "PNG":
        options |= {"quality": compression, "lossless": False} if kind == "WEBP" else {"quality": compression}
    if source is not None:
        options |= save_options(kind, parameters, source, text)
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, format=kind, **options)
    return content.getvalue()


def _format_of(path: Path) -> str:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        given = f"{path.suffix!r}" if path.suffix else "none"
        raise ImageFileError(f"{path.name}: the ending must be one of {', '.join(FORMATS)}, got {given}")
    return kind


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
