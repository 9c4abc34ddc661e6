"""What `max-zimage doctor` looks at of the installation: Python, the C library, packages, MAX.

Reference: reference/scale-and-ux.md section 13, wheels of MAX 26.7 (cp310 to cp314, manylinux_2_34).
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import InvalidRequirement, Requirement

from max_zimage.diagnosis.findings import Finding, fault, ok, warning
from max_zimage.diagnosis.system import installed
from max_zimage.host.words import counted
from max_zimage.version import __version__

PACKAGE = "max-zimage"
_LINKED = "max.nn.kv_cache"
"""What of MAX's imports a Mojo module that lies in its wheel as source."""
OLDEST_PYTHON, FIRST_WITHOUT = (3, 11), (3, 15)
"""Pythons that the package and MAX's wheels are for."""
OLDEST_GLIBC = (2, 34)


def python() -> Finding:
    """Whether this Python is one of those."""
    found = f"{platform.python_version()} ({sys.executable})"
    if OLDEST_PYTHON <= sys.version_info[:2] < FIRST_WITHOUT:
        return ok("Python", found)
    return fault("Python", found, "make an environment with Python 3.11, 3.12, 3.13 or 3.14 and install again")


def glibc() -> Finding:
    """Whether MAX's libraries can be loaded here."""
    kind, number = platform.libc_ver()
    found = re.match(r"(\d+)\.(\d+)", number)
    if sys.platform != "linux":
        return ok("C library", f"{platform.system()} {platform.release()}")
    if kind != "glibc" or found is None:
        return fault("C library", kind or "unknown", "MAX needs glibc; use Debian 12, Ubuntu 22.04 or newer")
    if (int(found[1]), int(found[2])) < OLDEST_GLIBC:
        return fault("C library", f"glibc {number}", "MAX needs glibc 2.34; use Debian 12, Ubuntu 22.04 or newer")
    return ok("C library", f"glibc {number}")


def packages() -> Iterator[Finding]:
    """A finding for every package that is missing or has a version the project is not made for, or one for all."""
    try:
        wanted = [Requirement(each) for each in requires(PACKAGE) or ()]
    except (PackageNotFoundError, InvalidRequirement) as error:
        yield warning("packages", f"{PACKAGE} is not installed as a package ({error})", f"pip install {PACKAGE}")
        return
    needed = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = list(_wrong(needed))
    yield from wrong
    if not wrong:
        yield ok("packages", f"{PACKAGE} {__version__} and the {counted(len(needed), 'package')} it needs")


def _wrong(needed: list[Requirement]) -> Iterator[Finding]:
    for each in needed:
        number = installed(each.name)
        remedy = f'pip install "{each}"'
        if number is None:
            yield fault("packages", f"{each.name} is not installed", remedy)
        elif not each.specifier.contains(number, prereleases=True):
            yield fault("packages", f"{each.name} {number} is installed, and {each.specifier} is needed", remedy)


def max_engine() -> Finding:
    """Whether MAX can be imported at all, with the part that it compiles and links when it is imported first."""
    try:
        from max.engine import InferenceSession
    except (ImportError, OSError) as error:
        return fault("MAX", f"cannot be imported: {error}", "install it again: pip install --force-reinstall modular")
    try:
        import_module(_LINKED)
    except (ImportError, OSError) as error:
        said = f"cannot compile its {_LINKED}: {error}"
        return fault("MAX", said, "install a C compiler called cc (Debian: gcc and libc6-dev), with which it links it")
    return ok("MAX", f"{installed('modular')} ({InferenceSession.__module__})")
