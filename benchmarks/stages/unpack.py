"""An environment from files, without a package index and with nothing but Python's own library.

It runs before anything that it installs can be imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path


def install(source: Path, site: Path) -> None:
    """Fill a folder with packages.

    Args:
        source: A folder of wheels, a tar archive of a site-packages folder (compressed or not), or a folder with the
            parts of such an archive, part.00, part.01 and so on.
        site: Where to; appears when it is complete.

    Raises:
        ValueError: If the source is none of these.
        RuntimeError: If pip fails.
    """
    scratch = site.with_name(site.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    wheels, parts = (sorted(source.glob(pattern)) for pattern in ("*.whl", "*.[0-9][0-9]"))
    if source.is_file():
        _unpack(source, scratch)
    elif wheels:
        _pip(wheels, scratch)
    elif parts:
        _unpack_parts(parts, scratch)
    else:
        raise ValueError(f"{source} holds neither wheels (*.whl) nor the parts of an archive (part.00, part.01, ...)")
    shutil.rmtree(site, ignore_errors=True)
    scratch.rename(site)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="tar")
    except tarfile.ReadError as error:
        raise ValueError(f"{archive} is no tar archive: {error}") from error


def _unpack_parts(parts: Sequence[Path], folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder.parent) as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole)
        whole.flush()
        _unpack(Path(whole.name), folder)


def _pip(wheels: Sequence[Path], folder: Path) -> None:
    flags = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *flags, *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise RuntimeError(f"pip failed: {done.stderr.strip()[-500:]}")
