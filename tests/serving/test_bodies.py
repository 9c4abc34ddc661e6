"""Bodies without a model behind them: what is said of those with thousands of faults, and what the description says."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http import static_files
from max_zimage.serving.http.a1111_arguments import arguments
from max_zimage.serving.http.a1111_body import PNG_INFO, TXT2IMG, A1111Request, setting_problems
from max_zimage.serving.http.app import _ROUTES
from max_zimage.serving.http.callers import cors_headers
from max_zimage.serving.http.routes_capabilities import _fields
from max_zimage.serving.http.routes_images import parsed
from max_zimage.serving.http.routes_llm_dit import GENERATE
from max_zimage.serving.http.schema import EDIT
from max_zimage.serving.settings import ServerLimits

STATIC = Path(static_files.__file__).with_name("static")
LIMITS = Limits(max_height=2048, max_width=2048, max_tokens=512, latent_channels=16, caption_dim=64)
DEFAULTS = RequestDefaults(height=128, width=96, num_inference_steps=8, guidance_scale=2.0)


def refusal(model: type[BaseModel], body: Any) -> str:
    with pytest.raises(ApiError) as caught:
        found = parsed(model, json.dumps(body).encode())
        arguments(cast(A1111Request, found), "m", DEFAULTS)
    return str(caught.value)


def check_linear(model: type[BaseModel], body: Callable[[int], Any], number: int) -> None:
    """Five times as many faults take about five times as long: 25 times if each looked at all the others."""

    def seconds(count: int) -> float:
        given = body(count)
        begin = time.thread_time()
        refusal(model, given)
        return time.thread_time() - begin

    few, many = (min(seconds(count) for _ in range(3)) for count in (number // 5, number))
    assert many < 15 * few + 0.01


def test_thousands_of_unknown_fields() -> None:
    def body(number: int) -> dict[str, int]:
        return {f"{'q' * 40}{each}": 1 for each in range(number)}

    said = refusal(EDIT, body(20_000))
    assert said.count("is no field of this route") == 19  # and the image is wanting
    assert said.endswith("; and 19981 more")
    check_linear(EDIT, body, 20_000)
    assert "the nearest is seed" in refusal(EDIT, {"seeed": 1})
    assert len(refusal(EDIT, {"seed" * 100_000: 1})) < 200


@pytest.mark.parametrize(
    "body",
    [
        lambda number: {"override_settings": {f"s{each}": 1 for each in range(number)}},
        lambda number: {"alwayson_scripts": {f"s{each}": {"args": [1]} for each in range(number)}},
        lambda number: {"prompt": "<lora:a:x>" * number},
    ],
    ids=["override_settings", "alwayson_scripts", "prompt"],
)
def test_thousands_of_faults(body: Callable[[int], dict[str, Any]]) -> None:
    said = refusal(TXT2IMG, body(5_000))
    assert said.endswith("; and 4980 more")
    assert said.count("; ") <= 60
    check_linear(TXT2IMG, body, 5_000)


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from ([part["$ref"]] if isinstance(part.get("$ref"), str) else [])
        part = list(part.values())
    for each in part if isinstance(part, list) else ():
        yield from references(each)


def test_the_description_refers_to_nothing_that_is_not_there() -> None:
    app = FastAPI()
    for module in _ROUTES:
        app.include_router(module.router)
    whole = app.openapi()
    for each in references(whole):
        place = whole
        for key in each.removeprefix("#/").split("/"):
            place = place[key]
    assert '"$defs"' not in json.dumps(whole)
    fields = GENERATE.model_fields
    body = whole["paths"]["/api/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == set(fields)
    (dype,) = (each for each in body["properties"]["dype"]["anyOf"] if each["type"] == "object")
    assert "multipass" in dype["properties"]


def described(**served: Any) -> dict[str, dict[str, Any]]:
    model: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(limits=LIMITS, defaults=DEFAULTS), limits=ServerLimits(), **served
    )
    return {each["name"]: each for each in _fields(model)}


def test_fields_as_the_page_gets_them() -> None:
    for metadata in (True, False):
        assert described(metadata=metadata)["metadata"]["default"] is metadata
    sigmas = described(metadata=True)["sigmas"]["schema"]
    assert sigmas == {"type": "array", "items": {"type": "number"}}


def test_a_request_may_want_pixels_alone() -> None:
    for given in (False, True, None):
        assert setting_problems({PNG_INFO: given}, "m", "override_settings") == []
    wrong: list[tuple[Any, str]] = [(False, "options"), (0, "override_settings"), ("no", "override_settings")]
    for value, field in wrong:
        ((_, said),) = setting_problems({PNG_INFO: value}, "m", field)
        assert f"{field}: enable_pnginfo is True here, got {value!r}" in said


def test_pages_may_read_what_answers_say_of_themselves() -> None:
    shown = dict(cors_headers("http://a"))[b"access-control-expose-headers"].decode().split(", ")
    assert set(shown) == {"X-Request-ID", "X-Seed", "X-Generation-Time", "X-Enhance-Note", "Retry-After"}


@pytest.mark.parametrize(
    ("key", "kept"), [("s3cret-\u00e9", True), ("\u0441\u0435\u043a\u0440\u0435\u0442", False), ("a\nb", False)]
)
def test_keys_that_a_browser_cannot_send_are_not_kept(key: str, kept: bool) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = (
        "let kept = null; globalThis.sessionStorage = { setItem: (name, key) => (kept = key) };"
        f"const {{ setKey }} = await import({json.dumps((STATIC / 'js' / 'api.js').as_uri())});"
        f"const said = setKey({json.dumps(key)}); console.log(JSON.stringify([kept, said]));"
        f"if (kept) new Headers({{ Authorization: `Bearer ${{kept}}` }});"
    )
    run = subprocess.run([node, "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    found, said = json.loads(run.stdout)
    assert (found, said == "") == (key if kept else None, kept)
