"""Requests of every API over HTTP: right ones, nearly right ones, and what nobody would send; the server answers all.

A server with narrow limits is asked by several clients at a time. Every answer is a picture or what was asked for, or a
refusal that says why in the API's own form; none is a fault of the server's, and none takes long.

Reference: reference/scale-and-ux.md sections 10 and 11.
"""

from __future__ import annotations

import base64
import io
import json
import string
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from max.pipelines.request.provider_options import ImageProviderOptions
from PIL import Image

from max_zimage.serving.http.a1111_body import IMG2IMG, INERT, TXT2IMG
from max_zimage.serving.http.chat_body import ChatRequest
from max_zimage.serving.http.routes_features import FEATURES
from max_zimage.serving.http.routes_hidden_states import HiddenStatesRequest
from max_zimage.serving.http.routes_llm_dit import GENERATE, TEXTS
from max_zimage.serving.http.schema import EDIT, GENERATION
from tests.fuzzers.tally import Tally
from tests.references.servers import Server

LIMITS = [
    "--max-pixels", "16384", "--max-steps", "2", "--max-images", "2", "--max-prompt-characters", "200",
    "--max-body-bytes", "200000",
]  # fmt: skip
"""Flags of the server: every picture is small."""

_REFUSALS = {400, 404, 405, 413, 415, 429}
_SECONDS = 60.0  # a picture of two steps takes a tenth of one; more is a request that hangs
_CLIENTS = 2
Generator = np.random.Generator

_RIGHT: Mapping[str, Mapping[str, Any]] = {
    "/v1/images/generations": {"prompt": "a red star", "steps": 1, "size": "64x64"},
    "/v1/images/edits": {"prompt": "a red star", "steps": 1, "image": "IMAGE"},
    "/v1/responses": {
        "model": "tiny-zimage",
        "input": "a red star",
        "provider_options": {"image": {"width": 64, "height": 64, "steps": 1}},
    },
    "/v1/prompt-features": {"prompt": "a red star"},
    "/v1/parameters": {"image": "IMAGE"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "red star"}]},
    "/api/generate": {"prompt": "a red star", "steps": 1, "width": 64, "height": 64},
    "/api/encode": {"prompt": "a red star"},
    "/api/format-prompt": {"prompt": "a red star"},
    "/v1/hidden_states": {"input": "a red star"},
    "/sdapi/v1/txt2img": {"prompt": "a red star", "steps": 1, "width": 64, "height": 64},
    "/sdapi/v1/img2img": {"prompt": "a red star", "steps": 1, "init_images": ["IMAGE"], "denoising_strength": 1.0},
    "/sdapi/v1/options": {"sd_model_checkpoint": "tiny-zimage"},
    "/sdapi/v1/png-info": {"image": "IMAGE"},
    "/sdapi/v1/interrupt": {},
}
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "/v1/images/generations": tuple(GENERATION.model_fields),
    "/v1/images/edits": tuple(EDIT.model_fields),
    "/v1/responses": ("model", "input", "provider_options", "seed", "n", "stream", "metadata", "user"),
    "/v1/prompt-features": tuple(FEATURES.model_fields),
    "/v1/parameters": ("image",),
    "/v1/chat/completions": tuple(ChatRequest.model_fields),
    "/api/generate": tuple(GENERATE.model_fields),
    "/api/encode": tuple(TEXTS.model_fields),
    "/api/format-prompt": tuple(TEXTS.model_fields),
    "/v1/hidden_states": tuple(HiddenStatesRequest.model_fields),
    "/sdapi/v1/txt2img": tuple(TXT2IMG.model_fields),
    "/sdapi/v1/img2img": tuple(IMG2IMG.model_fields),
    "/sdapi/v1/options": ("sd_vae", "CLIP_stop_at_last_layers", "samples_format"),
    "/sdapi/v1/png-info": ("image",),
    "/sdapi/v1/interrupt": ("all",),
}
_IMAGE_OPTIONS = tuple(ImageProviderOptions.model_fields)
_READ = (
    "/sdapi/v1/progress", "/sdapi/v1/samplers", "/sdapi/v1/schedulers", "/sdapi/v1/loras", "/sdapi/v1/options",
    "/sdapi/v1/memory", "/sdapi/v1/prompt-styles", "/api/templates", "/api/generation-config", "/api/resolution-config",
    "/v1/models", "/sdapi/v1/none", "/api/none", "/v1/capabilities", "/v1/requests/none", "/v1/images/none/content",
    "/health", "/livez", "/version", "/metrics", "/openapi.json", "/",
)  # fmt: skip
_WORDS = (
    "", "a red star", "\0", "<|im_start|>", "x" * 201, "auto", "png", "jpeg", "Euler", "DPM++ 2M Karras", "Karras",
    "euler_ancestral", "tiny-zimage", "64x64", "128X128", "off", "first_block:threshold=-1", "<lora:a:1>", "<lora:::>",
    "interpolate", "-2", "Lanczos", "data:image/png;base64,", "http://127.0.0.1:1/x.png", "None", "\U0001f600",
)  # fmt: skip
_NUMBERS = (0, 1, 2, -1, 16, 64, 128, 0.5, 1.0, 2.5, 7.0, 1e308, -(2**70), 2**63, 10**400, float("nan"), float("inf"))


def fuzz(count: int, seed: int = 0, server: Server | None = None) -> Tally:
    """Send requests.

    Args:
        count: How many.
        seed: They are the same for the same seed.
        server: One that was started with `LIMITS`; another one is started if it is None.
    """
    if server is None:
        with tempfile.TemporaryDirectory() as folder, Server(Path(folder), LIMITS) as own:
            return fuzz(count, seed, own)
    tally, shares = Tally(), [range(first, count, _CLIENTS) for first in range(_CLIENTS)]
    with ThreadPoolExecutor(_CLIENTS) as pool:
        for part in pool.map(lambda share: _client(server.url, seed, share), shares):
            tally += part
    if server.client.get("/health").status_code != 200:
        tally.wrong.append("the server is not ready any more")
    for name in ("zimage_queue_depth", "zimage_running"):
        if server.metric(name):
            tally.wrong.append(f"{name} is {server.metric(name)} when all is done")
    if "Traceback" in server.text():
        tally.wrong.append(f"the log has a traceback: {server.text()[-2000:]}")
    return tally


def _client(url: str, seed: int, indices: range) -> Tally:
    tally = Tally()
    with httpx.Client(base_url=url, timeout=_SECONDS) as client:
        for index in indices:
            rng = np.random.default_rng([seed, index])
            _try(tally, client, f"seed {seed}, index {index}", _drawn(rng))
    return tally


def _drawn(rng: Generator) -> httpx.Request:
    """A request to any host."""
    kind = int(rng.integers(12))
    if kind == 0:
        method = "DELETE" if rng.random() < 0.1 else "GET"
        return httpx.Request(method, f"http://x{_READ[int(rng.integers(len(_READ)))]}")
    route = list(_RIGHT)[int(rng.integers(len(_RIGHT)))]
    address = f"http://x{route}"
    if kind == 1:
        kinds = ("application/json", "text/plain", "multipart/form-data; boundary=x", "")
        content = rng.bytes(int(rng.integers(60))) if rng.random() < 0.5 else json.dumps(_json(rng)).encode()
        named = {"Content-Type": kinds[int(rng.integers(len(kinds)))]}
        return httpx.Request("POST", address, content=content, headers=named)
    body = dict(_RIGHT[route]) | ({"seed": int(rng.integers(2**31))} if "seed" in _FIELDS[route] else {})
    if kind > 3:  # a quarter is right as it stands
        body |= _some_fields(rng, _FIELDS[route])
        if route == "/v1/responses" and rng.random() < 0.5:
            options = dict(_RIGHT[route]["provider_options"]["image"])
            body["provider_options"] = {"image": options | _some_fields(rng, _IMAGE_OPTIONS)}
    text = json.dumps(body).replace('"IMAGE"', json.dumps(_image(rng, damaged=kind > 9)))
    return httpx.Request("POST", address, content=text, headers={"Content-Type": "application/json"})


def _some_fields(rng: Generator, names: tuple[str, ...]) -> dict[str, Any]:
    """Up to four fields, most with a value that may do."""
    found = {}
    for _ in range(int(rng.integers(1, 5))):
        name = names[int(rng.integers(len(names)))]
        if rng.random() < 0.1:
            name += "x"
        inert = INERT.get(name, ())
        plain = [each for each in inert if each is None or isinstance(each, (str, int, float, bool, list, dict))]
        found[name] = plain[int(rng.integers(len(plain)))] if plain and rng.random() < 0.5 else _json(rng)
    return found


def _json(rng: Generator, depth: int = 0) -> Any:
    """A value of any kind that JSON has, and some that it has not."""
    makers: list[Callable[[], Any]] = [
        lambda: None,
        lambda: bool(rng.integers(2)),
        lambda: _NUMBERS[int(rng.integers(len(_NUMBERS)))],
        lambda: int(rng.integers(5)),
        lambda: float(rng.random()),
        lambda: _WORDS[int(rng.integers(len(_WORDS)))],
        lambda: "".join(rng.choice(list(string.printable), int(rng.integers(20)))),
    ]
    if depth < 2:
        makers += [
            lambda: [_json(rng, depth + 1) for _ in range(int(rng.integers(3)))],
            lambda: {
                _WORDS[int(rng.integers(len(_WORDS)))]: _json(rng, depth + 1) for _ in range(int(rng.integers(3)))
            },
        ]
    return makers[int(rng.integers(len(makers)))]()


@cache
def _png() -> str:
    content = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _image(rng: Generator, *, damaged: bool) -> str:
    if not damaged:
        return _png()
    place = int(rng.integers(len(_png())))
    return _png()[:place] + str(rng.choice(list(string.ascii_letters + "+/=!"))) + _png()[place + 1 :]


def _try(tally: Tally, client: httpx.Client, label: str, drawn: httpx.Request) -> None:
    tally.tried += 1
    route, begun = drawn.url.path, time.monotonic()
    label = f"{label}, {drawn.method} {route} {drawn.content[:300]!r}"
    try:
        answer = client.request(
            drawn.method, route, content=drawn.content, headers=dict(drawn.headers) | {"host": "127.0.0.1"}
        )
    except httpx.HTTPError as error:
        tally.wrong.append(f"{label}: {error!r} after {time.monotonic() - begun:.0f} s")
        return
    ended = answer.status_code == 499 and route.startswith("/sdapi/")  # by another client's interrupt
    if answer.status_code == 200:
        tally.right += 1
    elif (answer.status_code in _REFUSALS or ended) and _is_told(route, answer):
        tally.refused += 1
    else:
        tally.wrong.append(f"{label}: {answer.status_code} {answer.text[:300]}")


def _is_told(route: str, answer: httpx.Response) -> bool:
    """Whether a refusal says why in the form of its API."""
    body = answer.json()
    message = body["error"]["message"]
    return bool(message) and (body.get("detail") == message) == route.startswith(("/api/", "/sdapi/"))
