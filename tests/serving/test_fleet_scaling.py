"""The long form of a fleet's tests: replicas that come with the load."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from tests.references.fleets import LocalFleet

pytestmark = pytest.mark.slow
pytest.importorskip("ray")
_PATIENCE = 240.0
"""Seconds: Ray looks at the queues for half a minute before it starts a replica, which then loads."""


def test_a_second_replica_comes_with_the_load(tmp_path: Path) -> None:
    flags = ["--replicas", "1", "--max-replicas", "2", "--batch-pictures", "1", "--max-queue", "8"]
    fleet, enough = LocalFleet(tmp_path, flags), Event()

    def ask(seed: int) -> list[int]:
        codes = []
        while not enough.is_set():
            codes.append(fleet.server.draw(size="256x256", steps=8, seed=seed).status_code)
        return codes

    with fleet.server, ThreadPoolExecutor(6) as clients:
        assert len(fleet.replicas()) == 1
        waiting = [clients.submit(ask, seed) for seed in range(6)]
        try:
            end = time.monotonic() + _PATIENCE
            while fleet.serving() < 2 and time.monotonic() < end:
                time.sleep(1)
            assert fleet.serving() == 2
        finally:
            enough.set()
        codes = [code for each in waiting for code in each.result()]
    assert codes
    assert set(codes) == {200}
