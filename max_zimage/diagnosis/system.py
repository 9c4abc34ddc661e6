"""What a report says of the machine and of what is installed, so that others can make sense of it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from max_zimage.host.processor import processor
from max_zimage.version import __version__

COMPUTE = ("modular", "numpy")
"""Distributions that every picture comes from."""
REFERENCE = ("diffusers", "torch", "transformers")
"""Those that `verify` compares with."""


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions(*more: str) -> dict[str, str | None]:
    """Versions of the package, of Python, of what computes, and of further distributions."""
    found = {"max_zimage": __version__, "python": platform.python_version()}
    return {**found, **{name: installed(name) for name in (*COMPUTE, *more)}}


def machine() -> dict[str, Any]:
    """The system and its processor, without anything that names its owner."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()) or None,
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
    }
