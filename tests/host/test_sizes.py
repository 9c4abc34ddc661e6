"""Sizes of memory in words."""

from __future__ import annotations

import pytest

from max_zimage.host.sizes import gigabytes, read_size, sized
from max_zimage.host.words import counted


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


def test_sizes_for_people() -> None:
    """Of what is there never 0, however little it is."""
    known = {
        0: "0 bytes",
        1023: "1023 bytes",
        1024: "1 KiB",
        2**20: "1 MiB",
        2**30 - 1: "1024 MiB",
        3 * 2**29: "1.5 GiB",
    }
    assert {count: sized(count) for count in known} == known
    assert [gigabytes(count) for count in (3_500_000, 167_708_486, 12_309_817_472)] == [
        "3.50 MB",
        "167.71 MB",
        "12.31 GB",
    ]


def test_numbers_of_things() -> None:
    assert [counted(count, "warning") for count in (0, 1, 2)] == ["0 warnings", "1 warning", "2 warnings"]
    stays = "matrix stays", "matrices stay"
    assert [counted(count, *stays) for count in (1, 3)] == ["1 matrix stays", "3 matrices stay"]
