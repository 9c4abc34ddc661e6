"""What a picture says of itself beside its pixels: the program's JSON, the text that other tools read, and its source.

| | JSON | other tools' text | source |
|---|---|---|---|
| PNG | iTXt `max_zimage` | tEXt or iTXt `parameters` | iTXt `XML:com.adobe.xmp` |
| JPEG, WebP | XMP `max_zimage:parameters` | EXIF UserComment, UTF-16 | XMP |

A JPEG has no room for more than 65,000 bytes of that text, and then holds none of it. Earlier versions had the JSON in
its place; both are read.

Reference: `reference/scale-and-ux.md` section 9; Exif 2.3, UserComment; PNG specification, section 11.3.3.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from max_zimage.images.errors import ImageFileError as ImageFileError
from max_zimage.images.files import warnings_raised
from max_zimage.images.infotext import write_infotext
from max_zimage.images.xmp import (
    MAX_PACKET,
    OTHER_PARAMETERS,
    OWN_PARAMETERS,
    Source,
    packet,
    packet_in_parts,
    properties,
    properties_of_parts,
)

_KEY = "max_zimage"
_TEXT_KEY = "parameters"
_XMP_KEY = "XML:com.adobe.xmp"
# EXIF 2.3: a user comment begins with eight bytes that name its encoding.
_ASCII, _UNICODE = b"ASCII\0\0\0", b"UNICODE\0"
_ENCODINGS = {_ASCII: "utf-8", _UNICODE: "utf-16-be"}
MAX_JPEG_TEXT = 65_000
"""Bytes that a JPEG holds of other tools' text: a segment has a 16-bit length, of which headers take some."""
_FORMATS = ("PNG", "JPEG", "WEBP")
"""Pillow's names of what is opened; it has plugins that run other programs, for EPS for one. JPEG is MPO too."""
_WRITTEN_BY = {"prompt": "ComfyUI", "workflow": "ComfyUI", "invokeai_metadata": "InvokeAI", "sd-metadata": "InvokeAI"}
"""Text chunks of programs whose parameters are not read."""


def save_options(kind: str, parameters: str, source: Source, text: str = "") -> dict[str, Any]:
    """Pillow's save options that put texts inside.

    Args:
        kind: "PNG", "JPEG" or "WEBP".
        parameters: JSON from `max_zimage.request.metadata.GenerationParameters.to_json`; empty for none.
        source: How the picture came to be.
        text: What other tools read, where that is not what they read of `parameters`.
    """
    text = text or (write_infotext(json.loads(parameters)) if parameters else "")
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if text:
            chunks.add_text(_TEXT_KEY, text)  # of Latin letters alone a tEXt chunk, which every reader knows
        if parameters:
            chunks.add_itxt(_KEY, parameters)
        chunks.add_itxt(_XMP_KEY, packet(source).decode())
        return {"pnginfo": chunks}
    xmp, segments = packet(source, parameters), b""
    if not text:
        return {"xmp": xmp}
    comment = _UNICODE + text.encode("utf-16-be")
    if kind == "JPEG" and len(xmp) > MAX_PACKET:
        xmp, segments = packet_in_parts(source, parameters)
    more: dict[str, Any] = {"extra": segments} if segments else {}
    if kind == "JPEG" and len(comment) > MAX_JPEG_TEXT:
        return {"xmp": xmp} | more
    exif = Image.Exif()
    exif.endian = ">"  # so that the comment's UTF-16 has the byte order of the rest, as readers expect
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: comment}
    return {"exif": exif, "xmp": xmp} | more


def has_other_text(kind: str, parameters: str) -> bool:
    """Whether a picture has room for the text that other tools read; its own parameters it always holds.

    Args:
        kind: "PNG", "JPEG" or "WEBP".
        parameters: As of `save_options`.
    """
    return kind != "JPEG" or "exif" in save_options(kind, parameters, Source.MODEL)


def embedded_text(source: Path | bytes) -> str:
    """Return the parameters in a picture: the program's JSON, or else the text of another tool.

    Args:
        source: Its file, or what is in that.

    Raises:
        ImageFileError: If there is no such file, it is no picture, is damaged, or holds no such text.
    """
    if isinstance(source, Path) and not source.is_file():
        raise ImageFileError(f"{source} is no file; name a picture that max_zimage saved")
    path = called(source)
    try:
        # Pillow only warns of damaged EXIF data and goes on without it. Decoding takes long, and warns of nothing.
        with warnings_raised():
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
        with picture:
            picture.load()
            with warnings_raised():
                is_png = isinstance(picture, PngImagePlugin.PngImageFile)
                text = _png_text(picture) if is_png else _other_text(picture)
            others = sorted({name for key, name in _WRITTEN_BY.items() if key in picture.info})
    # Pillow's decoders raise nearly anything on damaged data: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        raise ImageFileError(f"{path} is not a picture, or a damaged one: {_about(error)}") from error
    if text is not None:
        return text
    if others:
        raise ImageFileError(
            f"{path} holds the parameters of {' and '.join(others)}, which are not read; give the prompt and the seed "
            "yourself"
        )
    raise ImageFileError(
        f"{path} holds no generation parameters; only pictures saved by max_zimage do, and those of tools that write "
        "as stable-diffusion-webui does"
    )


def called(source: Path | bytes) -> str:
    """What messages call a picture: its file's name, where it has one."""
    return str(source) if isinstance(source, Path) else "the picture"


def _about(error: Exception) -> str:
    """Without the address of an object in memory, by which Pillow names what has no file."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no PNG, JPEG or WebP file"
    return str(error)


def _png_text(picture: Image.Image) -> str | None:
    assert isinstance(picture, PngImagePlugin.PngImageFile)
    for key in (_KEY, _TEXT_KEY):
        if key in picture.text:
            return str(picture.text[key])
    return None


def _app1(picture: JpegImageFile) -> list[bytes]:
    return [each[1] for each in picture.applist if each[0] == "APP1"]


def _other_text(picture: Image.Image) -> str | None:
    """Of a JPEG or a WebP."""
    xmp = picture.info.get("xmp")
    found: dict[str, str] = {}
    if isinstance(xmp, bytes):
        found = properties_of_parts(xmp, _app1(picture)) if isinstance(picture, JpegImageFile) else properties(xmp)
    if OWN_PARAMETERS in found:
        return found[OWN_PARAMETERS]
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment[:8] in _ENCODINGS:
        return comment[8:].decode(_ENCODINGS[comment[:8]])
    note = picture.info.get("comment")  # a JPEG of stable-diffusion.cpp
    if isinstance(note, bytes) and note.startswith(b"parameters\0"):
        return note[len(b"parameters\0") :].rstrip(b"\0").decode()
    return found.get(OTHER_PARAMETERS)
