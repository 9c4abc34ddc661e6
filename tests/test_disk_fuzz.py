"""A short form of the fuzzers of kept graphs and of disks that are full."""

from __future__ import annotations

from fuzzers import artifacts


def test_damaged_artifacts() -> None:
    tally = artifacts.fuzz(60)
    assert not tally.wrong, tally.wrong
    assert tally.tried == tally.right + tally.refused == 61
