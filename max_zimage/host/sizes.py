"""Sizes of memory as people read and write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))? ?(|[kmgt]i?b)", re.IGNORECASE)
_UNITS = {
    "": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def read_size(text: str) -> int:
    """Read a size: bytes, or a number with a unit behind it.

    Args:
        text: Such as "512MiB", "1.5 GB" or "268435456".

    Returns:
        Bytes.

    Raises:
        ValueError: If it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found[2] and not found[3]):
        raise ValueError(f"must be a size such as 512MiB, 1GiB or 268435456, got {text!r}")
    whole, fraction, unit = found[1], found[2] or "", _UNITS[found[3].lower()]
    count, rest = divmod(int(whole + fraction) * unit, 10 ** len(fraction))
    if rest:
        raise ValueError(f"must be a whole number of bytes, got {text!r}")
    return count


def sized(count: float) -> str:
    """Bytes for people, in the largest unit of which there is one: what is there is never 0 of it."""
    for unit, digits in (("GiB", 1), ("MiB", 0), ("KiB", 0)):
        if count >= _UNITS[unit.lower()]:
            return f"{count / _UNITS[unit.lower()]:.{digits}f} {unit}"
    return f"{count:.0f} bytes"


def gigabytes(count: int) -> str:
    """Bytes of files, which are counted in powers of ten."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
