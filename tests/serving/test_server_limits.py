"""What the server refuses, and that it says why; who is let in; the figures it keeps."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from tests.references.servers import SLOW, Server, error_of


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
    while server.draw(steps=1).status_code == 429 and time.monotonic() < deadline + 30:
        time.sleep(0.2)  # the worker lets go of those that hung up between two of its steps
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
        ({"size": "100x128"}, "size", "width must be a multiple of 16, got 100; the nearest are 96 and 112"),
        ({"size": "big"}, "size", 'size: must be "auto" or "WIDTHxHEIGHT"'),
        ({"max_sequence_length": 1505}, "max_sequence_length", "max_sequence_length must be from 1 to 1504, got 1505"),
        ({"hidden_layer": {"-6": 1}}, "hidden_layer", "hidden_layer must be from -5 to 4, for the text encoder has 4"),
        ({"steps": 0}, "steps", "steps must be from 1 to 1000, got 0"),
        ({"steps": "8"}, "steps", "steps: input should be a valid integer, got '8'"),
        ({"seed": -1}, "seed", "seed must be from 0"),
        ({"guidance_scale": -1}, "guidance_scale", "guidance_scale must be a finite number of at least 0"),
        ({"quality": "low", "steps": 3}, "quality", "leave one out"),
        ({"output_compression": 50}, "output_compression", "png has no quality"),
        ({"partial_images": 2}, "partial_images", "previews come with stream"),
        ({"negative_prompt": "y", "guidance_scale": 0}, "negative_prompt", "guidance is off"),
        ({"moderation": "high"}, "moderation", "moderation: input should be 'auto' or 'low'"),
        ({"colour": "vivid"}, "colour", "colour: is no field of this route; leave it out"),
        ({"background": "transparent"}, "background", "background: input should be 'auto' or 'opaque'"),
        ({"prompt": None}, "prompt", "prompt: field required, a string, or features in its place"),
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
    json = {"Content-Type": "application/json"}
    pieces = (b"x" * 100_000 for _ in range(30))
    assert server.client.post("/v1/images/generations", content=pieces, headers=json).status_code == 413
    broken = server.client.post("/v1/images/generations", content=b"{", headers=json)
    assert (broken.status_code, error_of(broken)["type"]) == (400, "invalid_request_error")
    assert server.client.get("/v1/nothing").status_code == 404
    assert server.client.get("/v1/images/generations").status_code == 405
    unknown = server.post("/v1/responses", model="tiny-zimage", input="x", temperature=1.0)
    assert (unknown.status_code, error_of(unknown)["param"]) == (400, "temperature")
    for options, param in [
        ({"steps": 5000}, "steps"),
        ({"num_images": 65}, "num_images"),
        ({"num_images": 4}, "num_images"),
        ({"flow_shift": 1e9}, "flow_shift"),
        ({"secondary_prompt": "x"}, "secondary_prompt"),
        ({"strength": 0.5}, "strength"),
        ({"width": 1024, "height": 1024}, "width"),
        ({"negative_prompt": "x", "guidance_scale": 0.0}, "negative_prompt"),
    ]:
        answer = server.post("/v1/responses", model="tiny-zimage", input="x", provider_options={"image": options})
        assert (answer.status_code, error_of(answer)["param"]) == (400, param), answer.text


def test_an_edit_is_resized_only_to_what_can_be_drawn(server: Server) -> None:
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, format="PNG")
    begin = time.monotonic()
    for size, message in [
        ("40000x40000", "height must be from 16 to 8192, got 40000"),
        ("8192x8192", "at most 262144 pixels, got 8192x8192"),
        ("0x512", "width must be from 16 to 8192, got 0"),
        ("100x128", "width must be a multiple of 16"),
    ]:
        fields = {"prompt": "x", "size": size, "resize": "true"}
        answer = server.client.post("/v1/images/edits", files={"image": ("x.png", content.getvalue())}, data=fields)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "size"), answer.text
        assert message in error_of(answer)["message"]
    assert time.monotonic() - begin < 5


def test_figures_for_operators(server: Server) -> None:
    images, steps = server.metric("zimage_images_total"), server.metric("zimage_steps_total")
    assert server.draw(n=2, steps=3).status_code == 200
    assert server.metric("zimage_images_total") == images + 2
    assert server.metric("zimage_steps_total") == steps + 3
    assert server.metric('zimage_stage_seconds_count{stage="decode"}') > 0
    assert server.metric('zimage_rejections_total{code="limit_exceeded"}') > 0
    assert server.metric('zimage_requests_total{route="/v1/images/generations",status="200"}') > 0
    assert server.metric("zimage_queue_depth") == 0
    assert server.metric("zimage_graph_cache") >= 1
