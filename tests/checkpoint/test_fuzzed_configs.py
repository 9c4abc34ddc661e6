"""The short form of the fuzzer of configurations."""

from __future__ import annotations

from tests.fuzzers.configs import fuzz


def test_changed_checkpoints_are_prepared_alike_or_refused_with_the_file() -> None:
    tally = fuzz(40, seed=19)
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.tried == 40 == tally.right + tally.refused
    assert min(tally.right, tally.refused) >= 5
