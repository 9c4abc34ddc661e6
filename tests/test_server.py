"""The real server on the embedded model, over HTTP: pictures, events, cancellation, limits, death and end."""

from __future__ import annotations

import base64
import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from references.scenes import recognize
from references.servers import STOP_SECONDS, Server, error_of

from max_zimage import ZImagePipeline, cli
from max_zimage.images import read_parameters

KEY = "correct-horse"
SLOW: dict[str, Any] = {"size": "512x512", "steps": 100}
"""A request that takes half a minute on two cores: nothing waits for its end."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "key").write_text(f"{KEY}\n")
    flags = ["--restart", "--api-key-file", "key", "--max-queue", "3", "--max-body-bytes", "2000000"]
    flags += ["--max-images", "3", "--max-pixels", "262144", "--max-prompt-characters", "500", "--batch-pictures", "2"]
    with Server(folder, flags, key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def pipeline() -> ZImagePipeline:
    return ZImagePipeline.from_pretrained(device="cpu")


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def pixels(data: str) -> np.ndarray:
    return np.asarray(opened(data).convert("RGB"))


def png(width: int = 128, height: int = 128) -> bytes:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:] = (30, 60, 220)
    picture[height // 4 : -height // 4, width // 4 : -width // 4] = (220, 30, 30)
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return content.getvalue()


def test_the_openai_client_gets_what_it_asks_for(server: Server, pipeline: ZImagePipeline) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    assert [model.id for model in client.models.list()] == ["tiny-zimage"]
    made = client.images.generate(
        model="tiny-zimage",
        prompt="a red star on a blue background",
        n=2,
        size="128x128",
        extra_body={"seed": 7, "steps": 8, "guidance_scale": 2.0},
    )
    assert made.data is not None and len(made.data) == 2
    colour, _, background = recognize(pixels(str(made.data[0].b64_json)))
    assert (colour, background) == ("red", "blue")
    drawn = pipeline(
        "a red star on a blue background",
        height=128,
        width=128,
        num_inference_steps=8,
        guidance_scale=2.0,
        seed=7,
        num_images_per_prompt=2,
    )
    for item, expected in zip(made.data, drawn, strict=True):
        np.testing.assert_array_equal(pixels(str(item.b64_json)), np.asarray(expected))


def test_the_command_line_draws_the_same_again_from_the_served_file(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (item,) = server.draw("a white ring on green", seed=11, size="144x128").json()["data"]
    assert item["seed"] == 11
    (tmp_path / "served.png").write_bytes(base64.b64decode(item["b64_json"]))
    assert read_parameters(tmp_path / "served.png").prompt == "a white ring on green"
    again = tmp_path / "again.png"
    assert cli.main(["generate", "--from", str(tmp_path / "served.png"), "--output", str(again), "--quiet"]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(again)), pixels(item["b64_json"]))


def test_what_is_not_said_is_the_checkpoints(server: Server) -> None:
    answer = server.draw()
    assert answer.status_code == 200
    body = answer.json()
    assert (body["size"], body["quality"], body["output_format"]) == ("128x128", "auto", "png")
    parameters = opened(body["data"][0]["b64_json"]).text["parameters"]  # type: ignore[attr-defined]
    assert '"num_inference_steps": 8' in parameters and '"guidance_scale": 2.0' in parameters
    low = opened(server.draw(quality="low").json()["data"][0]["b64_json"]).text["parameters"]  # type: ignore[attr-defined]
    assert '"num_inference_steps": 4' in low


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_by_url_in_every_format(kind: str, server: Server) -> None:
    more = {} if kind == "png" else {"output_compression": 80}
    answer = server.draw(response_format="url", output_format=kind, steps=1, **more).json()
    url = answer["data"][0]["url"]
    assert url.startswith(server.url)
    picture = server.client.get(url)
    assert (picture.status_code, picture.headers["content-type"]) == (200, f"image/{kind}")
    assert Image.open(io.BytesIO(picture.content)).format == kind.upper()
    assert server.client.get(f"{url[:-8]}x/content").status_code == 404


def test_max_own_route(server: Server, pipeline: ZImagePipeline) -> None:
    options = {"width": 128, "height": 128, "steps": 4, "output_format": "png", "num_images": 2}
    body = {"model": "tiny-zimage", "input": "a red star", "seed": 3, "provider_options": {"image": options}}
    answer = server.post("/v1/responses", **body)
    assert answer.status_code == 200, answer.text
    contents = answer.json()["output"][0]["content"]
    drawn = pipeline(
        "a red star", height=128, width=128, num_inference_steps=4, seed=3, num_images_per_prompt=2, output_type="np"
    )
    for content, expected in zip(contents, np.asarray(drawn), strict=True):
        np.testing.assert_array_equal(pixels(content["image_data"]), expected)
    by_url = server.post(
        "/v1/responses", **body | {"provider_options": {"image": options | {"response_format": "url"}}}
    )
    url = by_url.json()["output"][0]["content"][0]["image_url"]
    assert server.client.get(url).headers["content-type"] == "image/png"


def test_an_image_to_begin_with(server: Server, pipeline: ZImagePipeline) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    asked: dict[str, Any] = {"seed": 5, "strength": 0.5, "steps": 6}
    prompt = "a green circle on a black background"
    form = client.images.edit(image=("../../etc/passwd", png(), "image/png"), prompt=prompt, extra_body=asked)
    assert form.data is not None
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    as_json = server.post("/v1/images/edits", image=url, prompt=prompt, **asked).json()
    expected = pipeline(
        prompt,
        image=Image.open(io.BytesIO(png())),
        strength=0.5,
        num_inference_steps=6,
        seed=5,
    )
    for item in (str(form.data[0].b64_json), as_json["data"][0]["b64_json"]):
        np.testing.assert_array_equal(pixels(item), np.asarray(expected[0]))


def test_an_image_that_does_not_fit(server: Server) -> None:
    def post(image: bytes, **fields: str) -> httpx.Response:
        return server.client.post("/v1/images/edits", files={"image": ("x.png", image)}, data={"prompt": "x", **fields})

    odd = error_of(post(png(100, 130)))
    assert odd["param"] == "image"
    assert (
        "it has 100x130 pixels; the nearest size that fits is 96x128; resize it, or set resize to true"
        in odd["message"]
    )
    other = error_of(post(png(), size="256x256"))
    assert "it has 128x128 pixels and size asks for 256x256" in other["message"]
    made = post(png(100, 130), resize="true", steps="1")
    assert made.json()["size"] == "96x128"
    assert "is no PNG, JPEG or WEBP file" in error_of(post(b"GIF89a"))["message"]
    assert error_of(post(png(), mask="x"))["param"] == "mask"
    remote = error_of(server.post("/v1/images/edits", image="http://127.0.0.1:1/x.png", prompt="x"))
    assert "fetches nothing" in remote["message"]


def test_events_with_steps_and_previews(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    events = list(
        client.images.generate(
            prompt="a red star on a blue background",
            stream=True,
            partial_images=2,
            extra_body={"seed": 3, "guidance_scale": 2.0},
        )
    )
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds.count("progress") == 9
    assert kinds.count("partial_image") == 2
    assert kinds[-1] == "completed"
    previews = [event for event in events if event.type == "image_generation.partial_image"]
    assert [preview.partial_image_index for preview in previews] == [0, 1]
    assert opened(str(previews[0].b64_json)).size == (16, 16)
    plain = server.draw(seed=3, guidance_scale=2.0).json()["data"][0]["b64_json"]
    assert events[-1].b64_json == plain


def test_requests_that_wait_together_share_steps(server: Server, pipeline: ZImagePipeline) -> None:
    before = server.metric("zimage_batch_pictures_sum"), server.metric("zimage_batch_pictures_count")
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(server.draw, "a red star", seed=1, steps=30, size="256x256")
        time.sleep(0.3)
        others = [pool.submit(server.draw, "a blue ring", seed=seed, steps=4) for seed in (2, 3)]
        answers = [future.result() for future in (first, *others)]
    assert [answer.status_code for answer in answers] == [200] * 3
    after = server.metric("zimage_batch_pictures_sum"), server.metric("zimage_batch_pictures_count")
    assert (after[0] - before[0], after[1] - before[1]) == (5, 3)  # one alone, and two that say 2 each
    for seed, answer in zip((2, 3), answers[1:], strict=True):
        alone = np.asarray(pipeline("a blue ring", num_inference_steps=4, seed=seed, output_type="np"))[0]
        served = pixels(answer.json()["data"][0]["b64_json"])
        assert np.mean(np.abs(served.astype(int) - alone) <= 1) > 0.999


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
    assert server.client.get("/v1/requests/hangs-up").status_code == 404


def test_a_stream_that_is_left_cancels(server: Server) -> None:
    with server.client.stream("POST", "/v1/images/generations", json={"prompt": "x", "stream": True, **SLOW}) as answer:
        assert next(answer.iter_lines()) == "event: image_generation.progress"
        name = answer.headers["x-request-id"]
    deadline = time.monotonic() + 10
    while server.client.get(f"/v1/requests/{name}").status_code != 404 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.client.get(f"/v1/requests/{name}").status_code == 404


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


def test_a_full_queue_is_told_at_once(server: Server) -> None:
    flood = [{**SLOW, "seed": seed, "guidance_scale": float(seed)} for seed in range(12)]  # none shares another's steps
    stop = threading.Event()

    def ask(body: dict[str, Any]) -> tuple[int, float]:
        begin = time.monotonic()
        with server.client.stream(
            "POST", "/v1/images/generations", json={"prompt": "x", "stream": True, **body}
        ) as got:
            if got.status_code == 200:
                stop.wait(60)
            return got.status_code, time.monotonic() - begin

    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(ask, body) for body in flood]
        try:
            deadline = time.monotonic() + 30
            while sum(future.done() for future in futures) < 5 and time.monotonic() < deadline:
                time.sleep(0.05)
            refused = [future.result() for future in futures if future.done()]
            again = server.draw(**SLOW)
        finally:
            stop.set()
    assert {status for status, _ in refused} == {429}
    assert len(refused) == 12 - 4 - 3  # four in the worker, three in the queue
    assert max(seconds for _, seconds in refused) < 10
    assert (again.status_code, again.headers["retry-after"], error_of(again)["code"]) == (429, "1", "queue_full")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"size": "1024x1024"}, "size", "size: this server allows at most 262144 pixels, got 1024x1024 = 1048576"),
        ({"steps": 101}, "steps", "steps: this server allows at most 100 steps, got 101"),
        ({"n": 4}, "n", "n: this server allows at most 3 pictures a request, got 4"),
        ({"prompt": "x" * 501}, "prompt", "prompt: this server allows at most 500 characters, got 501"),
        ({"prompt": "x " * 240}, "prompt", None),
        ({"size": "100x128"}, "width", "width must be a multiple of 16, got 100; the nearest are 96 and 112"),
        ({"size": "big"}, "size", 'size: must be "auto" or "WIDTHxHEIGHT"'),
        ({"steps": 0}, "steps", "steps must be from 1 to 1000, got 0"),
        ({"steps": "8"}, "steps", "steps: input should be a valid integer, got '8'"),
        ({"seed": -1}, "seed", "seed must be from 0"),
        ({"guidance_scale": -1}, "guidance_scale", "guidance_scale must be a finite number of at least 0"),
        ({"quality": "low", "steps": 3}, "quality", "leave one out"),
        ({"output_compression": 50}, "output_compression", "png has no quality"),
        ({"partial_images": 2}, "partial_images", "previews come with stream"),
        ({"style": "vivid"}, "style", "style: is no field of this route; leave it out"),
        ({"background": "transparent"}, "background", "background: input should be 'auto' or 'opaque'"),
        ({"prompt": None}, "prompt", "prompt: input should be a valid string"),
    ],
    ids=lambda value: "",
)
def test_what_is_refused_names_the_field(body: dict[str, Any], param: str, message: str | None, server: Server) -> None:
    answer = server.post("/v1/images/generations", **{"prompt": "x", **body})
    if message is None:
        assert answer.status_code == 200  # long, but within the tokens allowed
        return
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert message in error["message"]


def test_other_refusals(server: Server) -> None:
    assert server.draw(model="dall-e-3").status_code == 404
    large = server.draw(user="x" * 2_000_001)
    assert (large.status_code, error_of(large)["code"]) == (413, "body_too_large")
    in_pieces = server.client.post("/v1/images/generations", content=(b"x" * 100_000 for _ in range(30)))
    assert in_pieces.status_code == 413
    broken = server.client.post("/v1/images/generations", content=b"{")
    assert (broken.status_code, error_of(broken)["type"]) == (400, "invalid_request_error")
    assert server.client.get("/v1/nothing").status_code == 404
    assert server.client.get("/v1/images/generations").status_code == 405
    unknown = server.post("/v1/responses", model="tiny-zimage", input="x", temperature=1.0)
    assert (unknown.status_code, error_of(unknown)["param"]) == (400, "temperature")


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}])
def test_a_wrong_key(header: dict[str, str], server: Server) -> None:
    with httpx.Client(base_url=server.url, headers=header) as client:
        assert client.get("/health").status_code == 200
        for method, path in [
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("POST", "/v1/images/generations"),
            ("GET", "/v1/images/x/content"),
            ("DELETE", "/v1/requests/x"),
        ]:
            answer = client.request(method, path)
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key"), path


def test_figures_for_operators(server: Server) -> None:
    images, steps = server.metric("zimage_images_total"), server.metric("zimage_steps_total")
    assert server.draw(n=2, steps=3).status_code == 200
    assert server.metric("zimage_images_total") == images + 2
    assert server.metric("zimage_steps_total") == steps + 3
    assert server.metric('zimage_stage_seconds_count{stage="decode"}') > 0
    assert server.metric('zimage_rejections_total{code="limit_exceeded"}') > 0
    assert server.metric('zimage_requests_total{route="/v1/images/generations",status="200"}') > 0
    assert server.metric("zimage_queue_depth") == 0


def test_a_killed_worker_comes_back_and_the_queue_goes_on(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(server.draw, headers={"X-Request-ID": "drawn"}, **SLOW)
        server.wait_for_status("drawn", "running")
        waits = pool.submit(server.draw, headers={"X-Request-ID": "waits"}, steps=2)
        server.wait_for_status("waits", "queued")
        os.kill(server.worker(), signal.SIGKILL)
        assert (drawn.result().status_code, error_of(drawn.result())["code"]) == (502, "worker_died")
        assert server.client.get("/health").json() == {"status": "restarting"}
        assert waits.result().status_code == 200
    assert server.metric("zimage_worker_starts_total") == 2
    assert "Traceback" not in server.text()


def test_sigterm_finishes_what_is_drawn_and_rejects_what_waits(tmp_path: Path) -> None:
    with Server(tmp_path) as server, ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(server.draw, headers={"X-Request-ID": "drawn"}, size="256x256", steps=20)
        server.wait_for_status("drawn", "running")
        waits = pool.submit(
            server.draw, headers={"X-Request-ID": "waits"}, size="256x256", steps=20, seed=1, guidance_scale=0.0
        )
        server.wait_for_status("waits", "queued")
        server.process.send_signal(signal.SIGTERM)
        assert (waits.result().status_code, error_of(waits.result())["code"]) == (503, "shutting_down")
        assert drawn.result().status_code == 200
        assert server.process.wait(STOP_SECONDS) == 0
        assert server.processes() == []


def test_sigterm_has_a_bound(tmp_path: Path) -> None:
    with Server(tmp_path, ["--shutdown-seconds", "1"]) as server, ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(server.draw, headers={"X-Request-ID": "drawn"}, **SLOW)
        server.wait_for_status("drawn", "running")
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert (drawn.result().status_code, error_of(drawn.result())["code"]) == (503, "shutting_down")
        assert server.process.wait(STOP_SECONDS) == 0
        assert time.monotonic() - begin < 15
        assert server.processes() == []


def test_without_restart_a_dead_worker_ends_the_server(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        os.kill(server.worker(), signal.SIGKILL)
        assert server.process.wait(STOP_SECONDS) == 1
        assert "with --restart it would be started again" in server.text()
        assert server.processes() == []
