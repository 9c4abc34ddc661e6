"""Text features in a safetensors file: one tensor, maybe a second one, and in the header what they were made by.

    embeddings            [tokens, width], float32 or bfloat16
    negative_embeddings   the same of the negative prompt; may be absent
    __metadata__          strings, see `max_zimage.request.prompt_features`

Files without such a header are llm-dit's: the tensor alone, and beside it maybe a JSON file of the same name. A tensor
is written as bfloat16 where that loses nothing. Pickles are never read: they are programs.

Reference: llm-dit src/llm_dit/distributed/embeddings.py.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors import SafetensorError

from max_zimage.errors import Problem, RequestWarning
from max_zimage.images.save import ImageFileError, check_folder
from max_zimage.strict_json import read_object
from max_zimage.version import __version__

FloatArray = npt.NDArray[np.float32]

ENDING = ".safetensors"
POSITIVE, NEGATIVE = "embeddings", "negative_embeddings"
FORMAT, FORMAT_VERSION = "max-zimage-embeddings", 1
MAX_BYTES = 256 * 2**20
"""Of a file; 1,504 rows of 2,560 numbers, positive and negative, are 31 MB in float32."""

_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize  # which says no types
_NUMBERS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PICKLES = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


def check_features_writable(path: Path) -> None:
    """Fail now rather than after the work if features cannot be saved here.

    Raises:
        ImageFileError: If the name does not end in .safetensors, or its folder does not let files be created.
    """
    if path.suffix != ENDING:
        raise ImageFileError(f"{path.name}: features are saved in a file whose name ends in {ENDING}")
    check_folder(path)
    if path.exists():
        raise ImageFileError(f"{path} exists already, and nothing is overwritten; choose another name")


def written(tensors: Mapping[str, FloatArray], said: Mapping[str, str]) -> bytes:
    """A file.

    Args:
        tensors: Name -> float32 [tokens, width].
        said: What the header says.
    """
    header: dict[str, object] = {"__metadata__": {"format": FORMAT, "format_version": f"{FORMAT_VERSION}", **said}}
    contents: list[bytes] = []
    end = 0
    for name, values in tensors.items():
        dtype, data = _stored(values)
        header[name] = {"dtype": dtype, "shape": [*values.shape], "data_offsets": [end, end + len(data)]}
        contents.append(data)
        end += len(data)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that numbers are aligned in a map of the file
    return b"".join((struct.pack("<Q", len(text)), text, *contents))


def content_of(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        ImageFileError: If it cannot be read, or is too large to be one of features.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ImageFileError(f"{path} has {size} bytes, and features at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ImageFileError(f"{path} cannot be read: {error.strerror or error}") from error


def read(content: bytes, name: str) -> tuple[dict[str, FloatArray], dict[str, str]]:
    """The tensors of a file, float32 [tokens, width], and what its header says, where that is this format's.

    Args:
        content: The file.
        name: What messages call it.

    Raises:
        ImageFileError: If it is none, holds other tensors, or these hold NaN, infinity or no row, or a newer
            max_zimage wrote it.
    """
    _check_kind(content, name)
    try:
        tensors = dict(_deserialize(content))
    except SafetensorError as error:
        raise ImageFileError(f"{name} is no safetensors file, or damaged: {error}") from error
    if POSITIVE not in tensors or tensors.keys() - {POSITIVE, NEGATIVE}:
        raise ImageFileError(
            f"{name} must hold a tensor {POSITIVE}, and maybe {NEGATIVE}, got {', '.join(sorted(tensors)) or 'none'}"
        )
    arrays = {key: _array(tensor, f"{name}: {key}") for key, tensor in tensors.items()}
    widths = {key: array.shape[1] for key, array in arrays.items()}
    if len(set(widths.values())) > 1:
        raise ImageFileError(
            f"{name}: {NEGATIVE} has the width {widths[NEGATIVE]}, and {POSITIVE} {widths[POSITIVE]}; they must agree"
        )
    (length,) = struct.unpack_from("<Q", content)
    said = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    if said.get("format") != FORMAT:
        return arrays, {}
    if said.get("format_version") != f"{FORMAT_VERSION}":
        raise ImageFileError(
            f"{name} has the format version {said.get('format_version')!r}, max_zimage {__version__} reads "
            f"{FORMAT_VERSION}; install a newer one"
        )
    return arrays, said


def _check_kind(content: bytes, name: str) -> None:
    """Refuse what is too large, and programs."""
    if len(content) > MAX_BYTES:
        raise ImageFileError(f"{name} has {len(content)} bytes, and features at most {MAX_BYTES}")
    # The length of a safetensors header may begin like these; the header itself begins with a brace.
    if content.startswith(_PICKLES) and content[8:9] != b"{":
        raise ImageFileError(
            f"{name} is a Python pickle, as torch.save writes; it could run anything and is not read. Save the tensor "
            f'as safetensors, under the name "{POSITIVE}"'
        )


def _stored(values: FloatArray) -> tuple[str, bytes]:
    """Word for the dtype, and bytes, of a tensor."""
    numbers = np.ascontiguousarray(values, "<f4")
    bits = numbers.view("<u4")
    if not (bits & np.uint32(0xFFFF)).any():
        return "BF16", (bits >> np.uint32(16)).astype("<u2").tobytes()
    return "F32", numbers.tobytes()


def _array(tensor: Mapping[str, Any], name: str) -> FloatArray:
    """A tensor in float32 [tokens, width]."""
    dtype, shape = tensor["dtype"], list(tensor["shape"])
    if dtype not in _NUMBERS:
        raise ImageFileError(f"{name} is {dtype} and must be one of {', '.join(_NUMBERS)}; convert it")
    if len(shape) == 3 and shape[0] == 1:  # a batch of one
        shape = shape[1:]
    if len(shape) != 2:
        raise ImageFileError(f"{name} must be [tokens, width], got {shape}; a file holds the features of one prompt")
    if not shape[0] or not shape[1]:
        raise ImageFileError(f"{name} must have at least one row, got {shape}")
    raw: npt.NDArray[Any] = np.frombuffer(bytes(tensor["data"]), _NUMBERS[dtype]).reshape(shape)
    if dtype == "BF16":
        raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    values = np.ascontiguousarray(raw, np.float32)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ImageFileError(f"{name} must hold finite numbers, got {bad} that are not; encode the prompt again")
    return values


def warn_of_sidecar(shape: tuple[int, int], path: Path) -> None:
    """Warn where llm-dit's JSON file says another shape than the tensor has: the tensor is what is drawn from.

    Args:
        shape: Rows and width of the tensor.
        path: The file, beside which the other one may lie.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return
    said = read_object(sidecar)
    wrong = [
        f"{key} {said[key]!r}, the tensor has {there}"
        for key, there in zip(("sequence_length", "embedding_dim"), shape, strict=True)
        if key in said and said[key] != there
    ]
    if wrong:
        text = "{sidecar} says of {path}: {wrong}; the tensor is taken"
        values = {"sidecar": sidecar, "path": path, "wrong": ", ".join(wrong)}
        warnings.warn(RequestWarning(Problem.of(None, text, **values)), stacklevel=3)
