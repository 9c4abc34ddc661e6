"""Pictures that rows begin with, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from max_zimage.errors import RequestError
from max_zimage.images.masks import decode_alpha_mask, decode_mask
from max_zimage.images.read import MAX_FILE_BYTES, data_url_bytes, decode_image

Pixels = npt.NDArray[np.uint8]

TRANSPARENCY = "mask"
"""The name of a mask as OpenAI's API has it: what is transparent is drawn anew."""
_READ = {"image": decode_image, "mask_image": decode_mask, TRANSPARENCY: decode_alpha_mask}


def contents_of(sources: Mapping[str, Any]) -> dict[str, bytes]:
    """Read the files of a row's pictures.

    Args:
        sources: "image", "mask_image" or `TRANSPARENCY` -> a path, a URL that fsspec knows, a data URL, bytes of a
            file, or both as Parquet files of pictures have it, {"bytes": ..., "path": ...}.

    Raises:
        RequestError: If one cannot be read.
    """
    return {name: _content(name, source) for name, source in sources.items()}


def pixels_of(contents: Mapping[str, bytes]) -> dict[str, Pixels]:
    """Decode them: argument of a request -> uint8 [height, width, 3], of a mask [height, width].

    Raises:
        RequestError: If one is no picture that does.
    """
    return {_argument(name): _READ[name](_argument(name), content) for name, content in contents.items()}


def digests_of(contents: Mapping[str, bytes]) -> dict[str, str]:
    """By which they are known again: whoever draws from them may find others under their names."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _argument(name: str) -> str:
    return "mask_image" if name == TRANSPARENCY else name


def _content(name: str, source: Any) -> bytes:
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str):
        message = "{field} must be a path, a URL or the bytes of a file, got {given}"
        raise RequestError.of(_argument(name), message, given=type(source).__name__)
    if source.startswith("data:"):
        return data_url_bytes(_argument(name), source)
    try:
        with fsspec.open(source, "rb") as file:
            content: bytes = file.read(MAX_FILE_BYTES + 1)
    except Exception as error:  # each file system has errors of its own
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RequestError.of(
            _argument(name), "{field} {source} cannot be read: {said}", source=source[:200], said=said
        ) from error
    if len(content) > MAX_FILE_BYTES:
        message = "{field} {source} has more than {most} bytes; give a smaller file"
        raise RequestError.of(_argument(name), message, source=source[:200], most=MAX_FILE_BYTES)
    return content
