"""The cache of features: what it keeps, in how many bytes, and what goes first."""

from __future__ import annotations

import threading

import numpy as np
import torch

from max_zimage.text.kept_features import KeptFeatures

RNG = np.random.default_rng(1)


def rows(count: int) -> np.ndarray:
    return RNG.standard_normal((count, 8)).astype(np.float32)


def test_what_is_kept_comes_back_to_the_bit_and_is_no_view() -> None:
    kept, given = KeptFeatures(1000), rows(3)
    expected = given.copy()
    assert kept.get("a") is None
    kept.put("a", given)
    given[:] = 0
    found = kept.get("a")
    assert found is not None
    np.testing.assert_array_equal(found, expected)
    assert kept.figures() == {"hits": 1, "misses": 1, "bytes": 96, "entries": 1}


def test_bfloat16_takes_two_bytes_a_number() -> None:
    kept = KeptFeatures(1000)
    values = torch.from_numpy(rows(5)).bfloat16().float().numpy()
    values[0, :3] = [0.0, -0.0, 2.0**-130]
    kept.put("a", values)
    assert kept.nbytes == 5 * 8 * 2
    found = kept.get("a")
    assert found is not None
    np.testing.assert_array_equal(found.view(np.uint32), values.view(np.uint32))


def test_the_least_recently_used_go_first_and_bytes_are_bounded() -> None:
    kept = KeptFeatures(3 * 96)
    for name in "abc":
        kept.put(name, rows(3))
    assert kept.get("a") is not None  # now b is the oldest
    kept.put("d", rows(3))
    assert [kept.get(name) is None for name in "abcd"] == [False, True, False, False]
    kept.put("large", rows(10))  # does not fit alone: nothing has to go for it
    assert kept.get("large") is None
    assert len(kept) == 3
    kept.put("two", rows(6))
    assert [kept.get(name) is None for name in ("a", "c", "d", "two")] == [True, True, False, False]
    assert kept.nbytes == 96 + 192


def test_threads_do_not_lose_count() -> None:
    kept = KeptFeatures(10 * 96)

    def work(seed: int) -> None:
        for index in np.random.default_rng(seed).integers(0, 30, 300):
            if kept.get(int(index)) is None:
                kept.put(int(index), np.full((3, 8), index + 0.1, np.float32))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sum(kept.counts.values()) == 1200
    assert kept.nbytes == 96 * len(kept) == 960
