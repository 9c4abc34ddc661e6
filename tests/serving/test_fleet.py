"""A fleet of two replicas on a Ray of this machine: the command itself, through Ray's proxy; one file, one start."""

from __future__ import annotations

import base64
import io
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.references.diffusers_runs import Pair
from tests.references.fleets import LocalFleet
from tests.references.servers import SLOW, error_of, left_after_some_steps

pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # nine processes; requests that are timed need a machine that does little else


@dataclass
class Running:
    fleet: LocalFleet

    def draw(self, request: str | None = None, **body: Any) -> httpx.Response:
        headers = {"X-Request-ID": request} if request else None
        return self.fleet.server.client.post(
            "/v1/images/generations", json={"prompt": "a star"} | body, headers=headers
        )

    def by_replica(self, name: str) -> dict[str, float]:
        """A figure of each replica."""
        lines = self.fleet.server.client.get("/metrics").text.splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if line.startswith(f"{name}{{"):
                replica = line.partition('replica="')[2].partition('"')[0]
                found[replica] = found.get(replica, 0.0) + float(line.rsplit(" ", 1)[1])
        return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("fleet")
    fleet = LocalFleet(folder, ["--max-queue", "2", "--batch-pictures", "1"])
    with fleet.server:
        deadline = time.monotonic() + 300
        while fleet.serving() < 2 and time.monotonic() < deadline:  # it is ready as soon as one of them is
            time.sleep(0.2)
        yield Running(fleet)


def test_a_picture_through_the_proxy_is_the_pipelines(running: Running, embedded: Pair) -> None:
    answer = running.draw("first", size="128x128", steps=4, seed=7)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get_list("x-request-id") == ["first"]
    (item,) = answer.json()["data"]
    (drawn,) = embedded.ours("a star", height=128, width=128, num_inference_steps=4, seed=7)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).convert("RGB"))
    np.testing.assert_array_equal(picture, np.asarray(drawn))
    assert running.fleet.server.wait_for_status("first", "done")["seconds"] > 0
    assert running.fleet.server.client.get("/v1/models").json()["data"][0]["id"] == "tiny-zimage"


def test_equal_shapes_meet(running: Running) -> None:
    """One at a time, so that both replicas are idle whenever one is chosen."""
    for size in ("128x128", "96x128", "144x96"):
        before = running.by_replica("zimage_images_total")
        assert len(before) == 2
        for seed in range(3):
            assert running.draw(size=size, steps=1, seed=seed).status_code == 200
        after = running.by_replica("zimage_images_total")
        assert sorted(after[name] - before[name] for name in after) == [0, 3]


def test_events_come_as_they_happen_and_end_with_the_client(running: Running) -> None:
    left_after_some_steps(running.fleet.server.client, "streamed")
    assert running.fleet.server.wait_for_status("streamed", "cancelled")["error"]["code"] == "cancelled"


def test_a_request_is_cancelled_by_its_id_through_the_proxy(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(running.draw, "slow", **SLOW)
        running.fleet.server.wait_for_status("slow", "running")
        answer = running.fleet.server.client.delete("/v1/requests/slow")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert (drawing.result().status_code, error_of(drawing.result())["code"]) == (499, "cancelled")


def test_above_capacity_is_refused_with_a_time_to_come_again(running: Running) -> None:
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda seed: running.draw(seed=seed, size="128x128", steps=4), range(24)))
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 429}
    assert counts[200] >= 8  # two that are drawn or next, and two that wait, at each
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert error_of(answer)["code"] == "queue_full"


def both_at_work(running: Running, pool: ThreadPoolExecutor) -> tuple[list[str], list[Future[httpx.Response]]]:
    """Two requests that are drawn, one at each replica.

    One after the other: of two that come at once Ray may choose the replica of the second before it has counted the
    first. It forgets what it has heard of a replica's requests after ten seconds; until then, after a burst, it may
    take one for busy that is idle.
    """
    client = running.fleet.server.client
    for attempt in range(3):
        names = [f"doomed-{attempt}-{number}" for number in range(2)]
        slow: list[Future[httpx.Response]] = []
        for name in names:
            slow.append(pool.submit(running.draw, name, **SLOW))
            deadline, status = time.monotonic() + 12, ""
            while status != "running" and time.monotonic() < deadline:
                time.sleep(0.1)
                answer = client.get(f"/v1/requests/{name}")
                status = answer.json()["status"] if answer.status_code == 200 else ""
        if status == "running":
            return names, slow
        for name, drawing in zip(names, slow, strict=True):
            client.delete(f"/v1/requests/{name}")
            drawing.result()
    raise AssertionError("one replica had both requests, three times")


def test_a_killed_replica_takes_only_what_it_drew(running: Running) -> None:
    """The last test here but one: it leaves one replica, while Ray starts another."""
    with ThreadPoolExecutor(4) as pool:
        names, slow = both_at_work(running, pool)
        victim = running.fleet.replicas()[0]
        os.kill(victim.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not any(each.done() for each in slow) and time.monotonic() < deadline:
            time.sleep(0.05)
        (dead,) = [each.result() for each in slow if each.done()]
        assert (dead.status_code, error_of(dead)["code"]) == (502, "replica_died")
        assert running.draw(size="64x64", steps=1, seed=1).status_code == 200  # waits for the one that is left
        for name in names:
            running.fleet.server.client.delete(f"/v1/requests/{name}")
        (other,) = [answer for each in slow if (answer := each.result()) is not dead]
        assert other.status_code in (200, 499)  # it goes on, and is done unless it took longer than that one
        assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE


def test_nothing_is_left(running: Running) -> None:
    """The last test here: it ends the fleet."""
    there = running.fleet.processes()
    assert len(there) > 6
    folders = {each for each in Path("/tmp").glob("max-zimage-ray-*") if (each / "session_latest").exists()}
    assert folders
    server = running.fleet.server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0, server.text()[-3000:]
    deadline = time.monotonic() + 20
    while any(map(alive, there)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [each for each in there if alive(each)] == []
    assert any(not each.exists() for each in folders)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
