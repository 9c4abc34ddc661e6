"""A short form of the fuzzers of kept graphs and of disks that are full."""

from __future__ import annotations

from tests.fuzzers import artifacts, disks


def test_damaged_artifacts() -> None:
    tally = artifacts.fuzz(30, graphs=artifacts.SMALL)
    assert not tally.wrong, tally.wrong
    assert tally.tried == tally.right + tally.refused == 31


def test_files_that_cannot_grow() -> None:
    tally = disks.fuzz(20)
    assert not tally.wrong, tally.wrong
    assert tally.tried == tally.right + tally.refused == 40
    assert tally.refused > 0
