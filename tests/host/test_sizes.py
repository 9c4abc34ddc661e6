"""Sizes of memory in words."""

from __future__ import annotations

import pytest

from max_zimage.host.sizes import read_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), ("268435456", 2**28), ("512MiB", 2**29), ("8GiB", 2**33), ("8 gib", 2**33), ("1.5GB", 1_500_000_000),
        ("0.5KiB", 512), ("2TiB", 2**41), (" 7kb ", 7000),
    ],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert read_size(text) == count


@pytest.mark.parametrize("text", ["", "8G", "GiB", "-1GiB", "1.5", "1e9", "8GiBs", "\u0661GiB", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size such as 512MiB, 1GiB or 268435456, got"):
        read_size(text)


def test_parts_of_a_byte_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be a whole number of bytes, got '0\.0001kb'"):
        read_size("0.0001kb")
