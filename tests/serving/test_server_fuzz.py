"""Bodies that nobody wrote by hand: whatever comes in, the server answers, and never with a fault of its own."""

from __future__ import annotations

import base64
import io
import json
import string
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.references.servers import Server

ANSWERS = {200, 400, 404, 413, 429}


def png() -> str:
    content = io.BytesIO()
    Image.fromarray(np.zeros((128, 128, 3), np.uint8)).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, 2, 16, 128, -1, 0.5, 1e308])
PROMPTS = st.text(max_size=60) | st.sampled_from(["a red star", "", "\0", "<|im_start|>", "x" * 201, "\ud800"])
DAMAGED = st.builds(
    lambda place, letter: png()[:place] + letter + png()[place + 1 :],
    st.integers(0, len(png()) - 1),
    st.sampled_from(string.ascii_letters + "+/=!"),
)
# None of them compiles a graph: at two steps the default of taylorseer is refused.
CACHES = st.sampled_from(["off", "first_block:threshold=-1", "taylorseer", "taylorseer:cache_interval=x", "teacache"])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "n": NUMBERS,
    "model": st.sampled_from(["tiny-zimage", "dall-e-3", ""]),
    "size": st.sampled_from(["128x128", "64x128", "auto", "0x0", "1x1", "999999x999999", "-1x2", "128X128", "16x16"]),
    "quality": st.sampled_from(["low", "high", "hd", "best"]),
    "response_format": st.sampled_from(["b64_json", "url", "file"]),
    "output_format": st.sampled_from(["png", "jpeg", "webp", "gif"]),
    "output_compression": NUMBERS,
    "metadata": st.booleans(),
    "background": st.sampled_from(["auto", "transparent"]),
    "user": st.text(max_size=30),
    "stream": st.booleans(),
    "partial_images": NUMBERS,
    "negative_prompt": PROMPTS,
    "steps": NUMBERS,
    "guidance_scale": NUMBERS,
    "cfg_normalization": NUMBERS,
    "cfg_truncation": NUMBERS,
    "shift": NUMBERS,
    "seed": NUMBERS,
    "strength": NUMBERS,
    "resize": st.booleans(),
    "step_cache": CACHES,
    "mask": JSON,
    "surprise": JSON,
}
MAX_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "width": NUMBERS,
    "height": NUMBERS,
    "steps": NUMBERS,
    "guidance_scale": NUMBERS,
    "true_cfg_scale": NUMBERS,
    "negative_prompt": PROMPTS,
    "secondary_prompt": PROMPTS,
    "num_images": NUMBERS,
    "strength": NUMBERS,
    "cfg_normalization": st.booleans(),
    "cfg_truncation": NUMBERS,
    "flow_shift": NUMBERS,
    "output_format": st.sampled_from(["png", "jpeg", "jpg"]),
    "response_format": st.sampled_from(["url", "b64_json"]),
    "residual_threshold": NUMBERS,
}
METADATA = {"metadata": st.dictionaries(st.just("step_cache"), CACHES | st.text(max_size=5)) | st.none()}


@st.composite
def bodies(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """Some fields of a route, of which most have values of the right kind."""
    names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    return {name: draw(JSON if draw(st.integers(0, 5)) == 0 else fields[name]) for name in names}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A route and a body."""
    route = draw(st.sampled_from(["generations", "edits", "responses", "raw"]))
    if route == "raw":
        content = draw(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
        return draw(st.sampled_from(["/v1/images/generations", "/v1/images/edits", "/v1/responses"])), content
    # One in four is right as it stands: that every route draws is not left to the luck of the draw. Each has another
    # seed, because Hypothesis runs no example twice.
    right = draw(st.integers(0, 3)) == 0
    seed = draw(st.integers(0, 2**31 - 1))
    if route == "responses":
        body: dict[str, Any] = {"model": "tiny-zimage", "input": "a red star", "seed": seed}
        options: dict[str, Any] = {"width": 128, "height": 128, "steps": 1}
        if not right:
            body |= {"input": draw(PROMPTS | JSON), "seed": draw(st.none() | NUMBERS)} | draw(bodies(METADATA))
            options |= draw(bodies(MAX_FIELDS))
        return "/v1/responses", json.dumps(body | {"provider_options": {"image": options}}).encode()
    body = {"prompt": "a red star", "steps": 1, "seed": seed}
    if not right:
        body |= {"prompt": draw(PROMPTS)} | draw(bodies(FIELDS))
    if route == "edits":
        body["image"] = png() if right else draw(st.just(png()) | DAMAGED | JSON)
    return f"/v1/images/{route}", json.dumps(body).encode()


def check(server: Server, route: str, content: bytes) -> None:
    answer = server.client.post(route, content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code in ANSWERS, answer.text
    if answer.status_code == 200:
        return
    error = answer.json()["error"]
    assert error["message"]
    if answer.status_code == 400 and "the body" not in error["message"]:
        assert error["param"], error


def run(server: Server, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(requests())
    def fuzz(request: tuple[str, bytes]) -> None:
        check(server, *request)

    processes = [psutil.Process(pid) for pid in (server.process.pid, server.worker())]
    before = [process.memory_info().rss for process in processes]
    answered = answers(server)
    fuzz()
    for process, held in zip(processes, before, strict=True):  # what was loaded late and the pools' first filling
        assert process.memory_info().rss < held + 250 * 2**20
    assert server.client.get("/health").status_code == 200
    assert server.metric("zimage_queue_depth") == 0
    assert server.metric("zimage_worker_starts_total") == 1
    assert "Traceback" not in server.text()
    # It is no test of refusals alone, nor of one route.
    assert min(counted - answered[each] for each, counted in answers(server).items()) >= examples / 50


def answers(server: Server) -> dict[tuple[str, int], float]:
    """How often each route has drawn, and has refused."""
    return {
        (route, status): server.metric(f'zimage_requests_total{{route="/v1/{route}",status="{status}"}}')
        for route in ("images/generations", "images/edits", "responses")
        for status in (200, 400)
    }


def test_200_requests(narrow: Server) -> None:
    run(narrow, 200)


@pytest.mark.slow
def test_2000_requests(narrow: Server) -> None:
    run(narrow, 2000)


def test_damaged_forms(narrow: Server) -> None:
    """Multipart bodies that are cut, mislabelled or not multipart at all."""
    boundary = "--x\r\nContent-Disposition: form-data; name="
    parts = [
        "",
        f'{boundary}"prompt"\r\n\r\na red star\r\n--x--\r\n',
        f'{boundary}"image"; filename="../../x"\r\n\r\nGIF89a\r\n--x--\r\n',
        f'{boundary}"image"; filename="a"\r\n\r\nPNG',
        f"{boundary}\r\n\r\n\r\n--x--",
        "\0" * 100,
    ]
    with httpx.Client(base_url=narrow.url, timeout=60) as client:
        for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "application/x-www-form-urlencoded"):
            for part in parts:
                answer = client.post("/v1/images/edits", content=part.encode(), headers={"Content-Type": kind})
                expected = 400 if kind.startswith("multipart") else 415
                assert answer.status_code == expected, (kind, part, answer.text)
                assert answer.json()["error"]["message"]
