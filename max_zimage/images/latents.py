"""Latents in a file: what a run in parts leaves, and goes on from. numpy's own format, of float32 and nothing else."""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from max_zimage.images.save import ImageFileError, check_folder, save_new

_ENDING = ".npy"


def check_latents_writable(path: Path) -> None:
    """Fail now rather than after minutes of work if latents cannot be saved here.

    Raises:
        ImageFileError: If the name does not end in .npy, or its folder does not let files be created.
    """
    if path.suffix != _ENDING:
        raise ImageFileError(f"{path.name}: latents are saved in a file whose name ends in {_ENDING}")
    check_folder(path)


def save_latents(latents: npt.NDArray[np.float32], path: Path) -> None:
    """Save latents, float32 [1, channels, height/8, width/8], in a file that does not exist yet.

    Raises:
        ImageFileError: If the file exists or cannot be written; nothing is left behind.
    """
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(latents, np.float32), allow_pickle=False)
    save_new(path, content.getvalue())


def read_latents(path: Path) -> npt.NDArray[np.float32]:
    """Read what `save_latents` wrote; the request checks shape and values.

    Raises:
        ImageFileError: If there is no such file, or it is none of latents.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ImageFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise ImageFileError(f"{path} holds no latents; a file of --latents-out does") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.float32:
        kind = found.dtype if isinstance(found, np.ndarray) else "several arrays"
        raise ImageFileError(f"{path} must hold one array of float32, got {kind}; a file of --latents-out does")
    return found
