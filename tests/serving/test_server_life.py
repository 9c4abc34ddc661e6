"""Cancellation, the worker's death, the server's end."""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fuzzers import kills
from tests.references.servers import SLOW, STOP_SECONDS, Server, error_of


def test_who_hangs_up_cancels(server: Server) -> None:
    before = server.metric('zimage_cancellations_total{by="client"}')
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(
            "/v1/images/generations", json={"prompt": "x", **SLOW}, headers={"X-Request-ID": "hangs-up"}, timeout=1.5
        )
    begin = time.monotonic()
    assert server.draw(steps=1).status_code == 200
    assert time.monotonic() - begin < 8  # a step or two of the slow one, not its ninety
    assert server.metric('zimage_cancellations_total{by="client"}') == before + 1
    assert server.client.get("/v1/requests/hangs-up").json()["status"] == "cancelled"


def test_a_stream_that_is_left_cancels(server: Server) -> None:
    with server.client.stream(
        "POST", "/v1/images/generations", json={"prompt": "x", "stream": True, "progress": True, **SLOW}
    ) as answer:
        assert next(answer.iter_lines()) == "event: image_generation.progress"
        name = answer.headers["x-request-id"]
    deadline = time.monotonic() + 10
    while server.client.get(f"/v1/requests/{name}").json()["status"] != "cancelled" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.client.get(f"/v1/requests/{name}").json()["error"]["code"] == "cancelled"


def test_an_id_can_be_used_again_at_once_after_a_cancellation(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.draw, headers={"X-Request-ID": "again"}, **SLOW)
        server.wait_for_status("again", "running")
        server.client.delete("/v1/requests/again")
        again = server.draw("a green square", headers={"X-Request-ID": "again"}, steps=2, seed=1)
        assert first.result().status_code == 499
    assert again.status_code == 200
    assert server.client.get("/v1/requests/again").json()["status"] == "done"
    assert server.client.delete("/v1/requests/again").status_code == 404
    assert again.json()["data"] == server.draw("a green square", steps=2, seed=1).json()["data"]


def test_cancelled_by_id_queued_and_running(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(server.draw, headers={"X-Request-ID": "one"}, **SLOW)
        server.wait_for_status("one", "running")
        queued = pool.submit(server.draw, headers={"X-Request-ID": "two"}, **SLOW, seed=1, guidance_scale=0.0)
        assert server.wait_for_status("two", "queued")["status"] == "queued"
        duplicate = server.draw(headers={"X-Request-ID": "two"})
        assert (duplicate.status_code, error_of(duplicate)["code"]) == (409, "duplicate_id")
        for name in ("two", "one"):
            assert server.client.delete(f"/v1/requests/{name}").json()["status"] == "cancelled"
        for future in (running, queued):
            assert (future.result().status_code, error_of(future.result())["code"]) == (499, "cancelled")


def large_form(server: Server) -> httpx.Response:
    """An edit whose file is larger than what Starlette keeps in memory by itself."""
    noise = np.random.default_rng(0).integers(0, 256, (688, 704, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, format="PNG", compress_level=0)
    assert 2**20 < len(content.getvalue()) < 2_000_000 - 1000
    fields = {"prompt": "x", "steps": "1", "size": "128x128", "resize": "true", "seed": "1"}
    return server.client.post("/v1/images/edits", files={"image": ("x.png", content.getvalue())}, data=fields)


def test_a_killed_worker_comes_back_and_the_queue_goes_on(server: Server) -> None:
    """Also where the folder for temporary files has been swept."""
    before = large_form(server)
    shutil.rmtree(server.temporary())
    after = large_form(server)
    assert (before.status_code, after.status_code) == (200, 200), after.text
    assert after.json()["data"] == before.json()["data"]
    with ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(server.draw, headers={"X-Request-ID": "drawn"}, **SLOW)
        server.wait_for_status("drawn", "running")
        waits = pool.submit(server.draw, headers={"X-Request-ID": "waits"}, steps=2)
        server.wait_for_status("waits", "queued")
        os.kill(server.worker(), signal.SIGKILL)
        assert (drawn.result().status_code, error_of(drawn.result())["code"]) == (502, "worker_died")
        assert server.client.get("/health").json() == {"status": "restarting"}
        assert waits.result().status_code == 200
    assert large_form(server).json()["data"] == before.json()["data"]
    assert server.metric("zimage_worker_starts_total") == 2
    assert "Traceback" not in server.text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose worker nobody starts again; the last test that has it ends it."""
    with Server(tmp_path_factory.mktemp("alone"), ["--allow-remote-images"]) as running:
        yield running


def test_images_are_fetched_where_allowed_and_from_public_addresses_only(alone: Server) -> None:
    server = alone
    inside = f"{server.url}/health"
    for url in (inside, "http://localhost/x.png", "http://169.254.169.254/latest/meta-data/", "http://[::1]/x.png"):
        edit = server.post("/v1/images/edits", image=url, prompt="x")
        assert (edit.status_code, error_of(edit)["param"]) == (400, "image"), edit.text
        assert "it cannot be fetched" in error_of(edit)["message"]
        content = [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": url}]
        body: dict[str, Any] = {"model": "tiny-zimage", "input": [{"role": "user", "content": content}]}
        answer = server.post("/v1/responses", **body)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "input_image"), answer.text
    assert server.metric('zimage_requests_total{route="/health",status="200"}') == server.health_checks


def test_sigterm_finishes_what_is_drawn_and_rejects_what_waits(alone: Server) -> None:
    server = alone
    with ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(server.draw, headers={"X-Request-ID": "drawn"}, size="256x256", steps=20)
        server.wait_for_status("drawn", "running")
        waits = pool.submit(
            server.draw, headers={"X-Request-ID": "waits"}, size="256x256", steps=20, seed=1, guidance_scale=0.0
        )
        server.wait_for_status("waits", "queued")
        os.killpg(server.process.pid, signal.SIGTERM)  # the worker too, as systemd does
        assert (waits.result().status_code, error_of(waits.result())["code"]) == (503, "shutting_down")
        assert drawn.result().status_code == 200
        assert server.process.wait(STOP_SECONDS) == 0
        assert server.left_behind() == []


def test_a_signal_has_a_bound(tmp_path: Path) -> None:
    with Server(tmp_path, ["--shutdown-seconds", "1"]) as server, ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(server.draw, headers={"X-Request-ID": "drawn"}, **SLOW)
        server.wait_for_status("drawn", "running")
        begin = time.monotonic()
        os.killpg(server.process.pid, signal.SIGHUP)  # as the end of a terminal does
        assert (drawn.result().status_code, error_of(drawn.result())["code"]) == (503, "shutting_down")
        assert server.process.wait(STOP_SECONDS) == 0
        assert time.monotonic() - begin < 15
        assert server.left_behind() == []


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """Nor does one to a server whose worker is stopped."""
    with Server(tmp_path, ["--shutdown-seconds", "600"]) as server, ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(server.draw, headers={"X-Request-ID": "drawn"}, **SLOW)
        server.wait_for_status("drawn", "running")
        os.kill(server.worker(), signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert (drawn.result().status_code, error_of(drawn.result())["code"]) == (503, "shutting_down")
        assert server.process.wait(STOP_SECONDS) == 0
        assert server.left_behind() == []


def test_without_restart_a_dead_worker_ends_the_server(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        os.kill(server.worker(), signal.SIGKILL)
        assert server.process.wait(STOP_SECONDS) == 1
        assert "with --restart it would be started again" in server.text()
        assert server.left_behind() == []


def test_kills_at_random_moments() -> None:
    tally = kills.fuzz(3)
    assert not tally.wrong
    assert (tally.tried, tally.right) == (3, 3)
