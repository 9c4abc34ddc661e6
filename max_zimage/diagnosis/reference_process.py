"""Runs the reference's side of `max-zimage verify`: whether it can, and its process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from max_zimage import progress
from max_zimage.device.dtypes import ModelDtype
from max_zimage.diagnosis.asked import Asked, read_values, write_job
from max_zimage.diagnosis.stages import Values
from max_zimage.errors import RequestError
from max_zimage.host.sizes import sized

INSTALL = 'pip install "max-zimage[verify]"'
_NEEDED = ("diffusers", "torch", "transformers")
_BESIDE = 2**30
"""Bytes that PyTorch itself and a small picture take besides weights."""
_MORE = 1.15
"""What diffusers loads of a text encoder beyond the layers that are used, as a share of these."""


class ReferenceFailedError(RuntimeError):
    """Diffusers did not get to the end; the message holds its own last words."""


def check_installed() -> None:
    """Check that there is something to compare with.

    Raises:
        RequestError: If a package is missing; says how to install it.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise RequestError.of(
            None,
            "verify compares with diffusers, and {missing} {verb} not installed; install what it needs: {install}",
            missing=" and ".join(missing),
            verb="is" if len(missing) == 1 else "are",
            install=INSTALL,
        )


def fitting(sizes: Mapping[ModelDtype, Mapping[str, int]], available: int) -> tuple[list[ModelDtype], list[str]]:
    """The dtypes in which diffusers has room, one component at a time.

    Args:
        sizes: dtype -> component -> bytes of its weights.
        available: Bytes of host memory that are free.

    Returns:
        These dtypes, and a sentence for each that is left out.
    """
    fits: list[ModelDtype] = []
    said = []
    for dtype, components in sizes.items():
        name, largest = max(components.items(), key=lambda each: each[1])
        needed = round(_MORE * largest) + _BESIDE
        if needed <= available:
            fits.append(dtype)
        else:
            said.append(
                f"diffusers in {dtype} was left out: its {name} needs about {sized(needed)} of memory, "
                f"{sized(available)} are free"
            )
    return fits, said


def run_reference(directory: Path, asked: Asked, folder: Path) -> dict[ModelDtype, Values]:
    """Have diffusers compute all stages.

    Args:
        directory: The checkpoint, in the layout of diffusers.
        asked: The picture.
        folder: For the files by which the processes tell each other.

    Returns:
        dtype -> the values of all stages.

    Raises:
        ReferenceFailedError: If it fails.
    """
    command = [sys.executable, "-m", "max_zimage.diagnosis.reference", str(write_job(folder, directory, asked))]
    # MAX, once imported, names its own Python in the environment, and nothing is to be fetched: the files are there.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"} | {"HF_HUB_OFFLINE": "1"}
    with (
        (folder / "log").open("w+", encoding="utf-8") as log,
        progress.stage("diffusers", 3 * len(asked.dtypes)) as shown,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                shown.advance(line.strip())
            process.wait()
        except BaseException:  # whoever waits has had enough
            process.terminate()
            raise
        log.seek(0)
        said = [line.strip() for line in log.read().splitlines() if line.strip()]
    if process.returncode:
        why = said[-1] if said else f"it ended with {process.returncode} and said nothing"
        killed = "; the system may have ended it for want of memory" if process.returncode == -9 else ""
        raise ReferenceFailedError(f"diffusers failed on {directory}: {why}{killed}")
    return {dtype: read_values(folder, dtype) for dtype in asked.dtypes}
