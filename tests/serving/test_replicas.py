"""Two replicas of a real server behind a proxy that takes turns: what one knows, the other one tells."""

from __future__ import annotations

import io
import itertools
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from max_zimage.version import __version__
from tests.references.balancer import PUBLIC, Balancer, Collector
from tests.references.servers import KEY, SLOW, STOP_SECONDS, Server, error_of, left_after_some_steps, status_of

STAGES = ("queue", "captions", "steps", "decode", "encode")
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass
class Fleet:
    """The replicas, and what is around them."""

    one: Server
    two: Server
    proxy: httpx.Client
    spans: Collector

    def draw(self, client: httpx.Client, request: str | None = None, **body: Any) -> httpx.Response:
        headers = {"X-Request-ID": request} if request else None
        return client.post("/v1/images/generations", json={"prompt": "a red star"} | body, headers=headers)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "key").write_text(KEY)
    flags = ["--api-key-file", str(folder / "key"), "--state-store", f"file://{folder}/state"]
    flags += ["--trusted-proxy", "127.0.0.1", "--allow-host", PUBLIC]
    flags += ["--shutdown-seconds", "600"]  # on a busy machine a picture takes longer than the usual 30
    with ExitStack() as stack:
        spans = stack.enter_context(Collector())
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": spans.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        environment |= {"OTEL_SDK_DISABLED": "false", "OTEL_SERVICE_NAME": "fleet"}
        servers = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            servers.append(Server(folder / name, flags, key=KEY, environment=environment))
            servers[-1].begin()
            stack.push(servers[-1])
        for each in servers:
            each.wait_until_ready()
        balancer = stack.enter_context(Balancer([each.url for each in servers]))
        proxy = httpx.Client(base_url=balancer.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=900)
        yield Fleet(servers[0], servers[1], stack.enter_context(proxy), spans)


def test_a_picture_by_url_through_either_replica(fleet: Fleet) -> None:
    served, answers = set(), []
    for _ in range(2):
        answer = fleet.draw(fleet.proxy, response_format="url", steps=2, seed=4)
        assert answer.status_code == 200, answer.text
        served.add(answer.headers["x-served-by"])
        answers.append(answer.json()["data"][0]["url"])
    assert served == {fleet.one.url, fleet.two.url}
    pixels = []
    for url in answers:
        assert (urlsplit(url).scheme, urlsplit(url).netloc) == ("https", PUBLIC)
        for client in (fleet.one.client, fleet.two.client, fleet.proxy, fleet.proxy):
            picture = client.get(urlsplit(url).path)
            assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
            assert picture.headers["x-content-type-options"] == "nosniff"
            pixels.append(np.asarray(Image.open(io.BytesIO(picture.content))))
    for each in pixels[1:]:
        np.testing.assert_array_equal(each, pixels[0])
    assert httpx.get(f"{fleet.two.url}{urlsplit(answers[0]).path}").status_code == 401


def test_who_is_no_proxy_is_not_believed(fleet: Fleet) -> None:
    """The proxies are those of 127.0.0.1, and this client comes from there; its lies end at the names of the server."""
    answer = fleet.one.client.get("/v1/models", headers={"X-Forwarded-Host": "evil.example"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "unknown_host")


@pytest.mark.parametrize("way", ["the other replica", "the proxy"])
def test_progress_and_cancellation_through_another_replica(fleet: Fleet, way: str) -> None:
    other = fleet.two.client if way == "the other replica" else fleet.proxy
    name = f"slow-{way.replace(' ', '-')}"
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(fleet.draw, fleet.one.client, name, **SLOW)
        first = status_of(other, name, "running")
        assert set(first) == {"id", "status", "step", "steps"}
        assert first["steps"] == 100
        duplicate = fleet.draw(fleet.two.client, name, steps=1)
        assert (duplicate.status_code, error_of(duplicate)["code"]) == (409, "duplicate_id")
        while (now := status_of(other, name, "running"))["step"] <= first["step"]:
            time.sleep(0.1)
        assert now["step"] < 100
        answer = other.delete(f"/v1/requests/{name}")
        assert (answer.status_code, answer.json()) == (200, {"id": name, "status": "cancelled"})
        assert (drawing.result().status_code, error_of(drawing.result())["code"]) == (499, "cancelled")
    for client in (fleet.one.client, fleet.two.client):
        assert status_of(client, name, "cancelled")["error"]["code"] == "cancelled"
        assert client.delete(f"/v1/requests/{name}").status_code == 404
        assert client.get("/v1/requests/none").status_code == 404


@pytest.mark.parametrize("way", ["the other replica", "the proxy"])
def test_clients_without_ids_see_and_end_what_any_replica_draws(fleet: Fleet, way: str) -> None:
    """AUTOMATIC1111's, which ask how far the current picture is and end it, wherever they come to."""
    other = fleet.two.client if way == "the other replica" else fleet.proxy
    slow = {"prompt": "a red star", "width": 512, "height": 512, "steps": SLOW["steps"]}

    def told(client: httpx.Client) -> dict[str, Any]:
        answer = client.get("/sdapi/v1/progress")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(fleet.one.client.post, "/sdapi/v1/txt2img", json=slow)
        deadline = time.monotonic() + 60
        while (found := told(other))["state"]["sampling_step"] < 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert 0 < found["progress"] < 1
        assert found["eta_relative"] > 0
        here = told(fleet.one.client)
        same = ("job", "job_count", "sampling_steps")
        assert [found["state"][name] for name in same] == [here["state"][name] for name in same]
        assert found["state"]["sampling_step"] <= here["state"]["sampling_step"] < 100
        assert other.post("/sdapi/v1/interrupt").json() == {}
        assert (drawing.result().status_code, error_of(drawing.result())["code"]) == (499, "cancelled")
    for client in (fleet.one.client, fleet.two.client):
        while told(client)["state"]["job_count"] and time.monotonic() < deadline + 60:
            time.sleep(0.1)
        assert told(client)["progress"] == 0


def test_events_come_through_the_proxy_as_they_happen_and_end_with_the_client(fleet: Fleet) -> None:
    assert left_after_some_steps(fleet.proxy, "streamed")["x-accel-buffering"] == "no"
    found = status_of(fleet.two.client, "streamed", "cancelled", "running")
    assert status_of(fleet.one.client, "streamed", "cancelled")["status"] == "cancelled", found


def test_life_and_readiness_need_no_key(fleet: Fleet) -> None:
    stranger = httpx.Client(base_url=str(fleet.proxy.base_url))
    assert stranger.get("/livez").json() == {"status": "alive"}
    assert stranger.get("/readyz").json() == stranger.get("/health").json() == {"status": "ready"}
    assert stranger.get("/metrics").status_code == 401


def test_figures_of_the_processes_and_of_what_is_served(fleet: Fleet) -> None:
    text = fleet.one.client.get("/metrics").text
    (info,) = [line for line in text.splitlines() if line.startswith("zimage_info{")]
    assert f'version="{__version__}"' in info
    assert all(f'{name}="' in info for name in ("model_name", "device", "dtype", "quantize"))
    assert 'model_name="tiny-zimage"' in info
    megabyte = 2**20
    assert 50 * megabyte < fleet.one.metric("process_resident_memory_bytes") < 8000 * megabyte
    assert 200 * megabyte < fleet.one.metric("zimage_worker_process_resident_memory_bytes") < 16_000 * megabyte
    assert fleet.one.metric("zimage_worker_process_cpu_seconds_total") > 1
    assert fleet.one.metric("process_open_fds") > 10
    assert fleet.one.metric("zimage_store_errors_total") == 0


def test_a_collector_sees_the_spans_of_a_request_in_its_clients_trace(fleet: Fleet) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1", "X-Request-ID": "traced"}
    body = {"prompt": "a very secret lighthouse", "steps": 3, "size": "128x144", "n": 2}
    before = time.time_ns()
    assert fleet.proxy.post("/v1/images/generations", json=body, headers=headers).status_code == 200
    after = time.time_ns()
    route = "POST /v1/images/generations"
    spans = fleet.spans.of_trace(TRACE, 6)
    assert set(spans) == {route, *STAGES}
    whole = spans[route]
    assert whole.parent == PARENT
    assert {spans[stage].parent for stage in STAGES} == {whole.span}
    said = {"http.response.status_code": 200, "http.route": "/v1/images/generations", "zimage.request_id": "traced"}
    said |= {"zimage.width": 128, "zimage.height": 144, "zimage.steps": 3, "zimage.images": 2}
    assert said.items() <= whole.attributes.items()
    assert {each.resource["service.name"] for each in spans.values()} == {"fleet"}
    processes = {name: each.resource["process.pid"] for name, each in spans.items()}
    assert processes[route] == processes["queue"] != processes["steps"]
    assert len({processes[stage] for stage in STAGES[1:]}) == 1
    slack = 5_000_000  # nanoseconds between two looks at two clocks
    moments = [before, whole.begin]
    for stage in STAGES[1:]:
        moments += [spans[stage].begin, spans[stage].end]
        assert spans[stage].end > spans[stage].begin
    moments += [whole.end, after]
    assert all(first <= second + slack for first, second in itertools.pairwise(moments)), moments
    assert b"secret" not in fleet.spans.raw


def test_a_replica_that_ends_finishes_and_what_it_did_stays(fleet: Fleet) -> None:
    """The last test here: it ends the first replica, in the middle of a request."""
    with ThreadPoolExecutor(1) as pool:
        asked = {"size": "512x512", "steps": 12, "response_format": "url"}
        drawing = pool.submit(fleet.draw, fleet.one.client, "last", **asked)
        status_of(fleet.two.client, "last", "running")
        fleet.one.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30  # the signal comes to the server some time after it was sent
        while (waiting := fleet.one.client.get("/readyz")).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (waiting.status_code, waiting.json()) == (503, {"status": "ending"})
        assert fleet.one.client.get("/livez").status_code == 200
        (picture,) = drawing.result().json()["data"]
    assert fleet.one.process.wait(STOP_SECONDS) == 0
    for client in (fleet.two.client, fleet.proxy, fleet.proxy):
        found = client.get(urlsplit(picture["url"]).path)
        assert Image.open(io.BytesIO(found.content)).size == (512, 512)
        assert status_of(client, "last", "done")["seconds"] > 0
    ended = [each for each in fleet.spans.spans if each.attributes.get("zimage.request_id") == "last"]
    (trace,) = {each.trace for each in ended if each.name.startswith("POST")}
    assert set(fleet.spans.of_trace(trace, 6)) == {"POST /v1/images/generations", *STAGES}
    assert fleet.draw(fleet.proxy, steps=1).status_code == 200
