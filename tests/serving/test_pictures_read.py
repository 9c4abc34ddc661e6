"""What pictures say, over HTTP and without a model: those of other tools, damaged ones, and those made to do harm."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from max_zimage.errors import RequestError
from max_zimage.images.files import warnings_raised
from max_zimage.images.save import ImageFileError, encode_image
from max_zimage.images.texts import embedded_text
from max_zimage.request.metadata import UNKNOWN_IMAGE
from max_zimage.request.other_tools import read_any
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http import routes_a1111_lists, routes_parameters
from tests.images.test_save import picture
from tests.images.test_texts import PLAIN, saved_by_others
from tests.request.test_other_tools import WEBUI, put

ROUTES = ("/sdapi/v1/png-info", "/v1/parameters")
PNG_INFO, PARAMETERS = ROUTES


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.state.server = SimpleNamespace(served=SimpleNamespace(limits=SimpleNamespace(input_pixels=1000 * 1000)))
    for module in (routes_a1111_lists, routes_parameters):
        app.include_router(module.router)

    @app.exception_handler(ApiError)
    async def on_refusal(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status)

    return TestClient(app)


def post(client: TestClient, route: str, content: bytes, status: int = 200) -> dict[str, Any]:
    answer = client.post(route, json={"image": f"data:image/png;base64,{base64.b64encode(content).decode()}"})
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def saying(text: str, key: str = "parameters") -> bytes:
    chunks, content = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_itxt(key, text)
    Image.fromarray(picture()).save(content, "PNG", pnginfo=chunks)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_own_pictures(kind: str, client: TestClient) -> None:
    content = encode_image(picture(), kind, PLAIN.to_json())
    info = post(client, PNG_INFO, content)
    assert (info["parameters"]["Prompt"], info["parameters"]["Steps"]) == (PLAIN.prompt, "20")
    found = post(client, PARAMETERS, content)
    assert (found["parameters"]["prompt"], found["notes"]) == (PLAIN.prompt, [])


@pytest.mark.parametrize("way", ["png", "webui jpeg", "webui webp", "sd.cpp jpeg", "sd.cpp webp"])
def test_pictures_of_other_tools(way: str, client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if way == "png":
        put(path, WEBUI)
    else:
        saved_by_others(path, WEBUI, way)
    content = path.read_bytes()
    info = post(client, PNG_INFO, content)
    assert (info["parameters"]["Sampler"], info["parameters"]["Seed"]) == ("DPM++ 2M", "11")
    found = post(client, PARAMETERS, content)
    expected = {
        "steps": 3,
        "sampler": "comfy_dpmpp_2m",
        "guidance_scale": 2.5,
        "seed": 11,
        "size": "96x64",
        "noise": "torch",
    }
    assert expected.items() <= found["request"].items()
    assert (found["left_out"], found["needs"]) == ({}, {})
    assert found["notes"][0].startswith("the picture is by v1.10.1, which draws other noise from a seed")


def test_what_another_tools_picture_wants(client: TestClient) -> None:
    text = "a star <lora:my style:0.5>\nSteps: 4, Sampler: Euler, Seed: 1, Denoising strength: 0.3"
    found = post(client, PARAMETERS, saying(text))
    assert (found["needs"], found["request"]["strength"]) == ({"image_digest": UNKNOWN_IMAGE}, 0.3)
    assert found["request"]["loras"] == [{"name": "my style.safetensors", "scale": 0.5}]
    assert "size" not in found["request"]
    said = post(client, PARAMETERS, saying("a star\nSteps: 4, Sampler: DPM2 a, Seed: 1"), 400)["error"]
    assert said["param"] == "image"
    assert "Sampler 'DPM2 a' has no counterpart; choose one with sampler from" in said["message"]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_not_opened(route: str, client: TestClient, tmp_path: Path) -> None:
    large = io.BytesIO()
    Image.new("1", (1001, 1000)).save(large, format="PNG")
    for content, says in (
        (EPS, "is no PNG, JPEG or WebP file"),
        (large.getvalue(), "has 1001x1000 pixels"),
        (b"", "empty"),
    ):
        error = post(client, route, content, 400)["error"]
        assert error["message"].startswith("image"), error
        assert says in error["message"]
    (tmp_path / "a.eps").write_bytes(EPS)
    for source in (EPS, tmp_path / "a.eps"):
        with pytest.raises(ImageFileError, match="it is no PNG, JPEG or WebP file"):
            embedded_text(source)


def test_nothing_waits_while_a_picture_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_image(picture(), "PNG", PLAIN.to_json())
    load = PngImagePlugin.PngImageFile.load

    def loaded(self: Any) -> Any:
        with warnings_raised():  # another thread's, which would wait for ever
            return load(self)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", loaded)
    thread = threading.Thread(target=embedded_text, args=(content,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


DAMAGED: list[tuple[str, str]] = [
    ("sampler", '"foo"'),
    ("sigma_shape", '"foo"'),
    ("upscale", '"foo"'),
    ("shift", "Infinity"),
    ("shift", "NaN"),
    ("shift", "1e400"),
    ("shift", "1" + "0" * 400),
    ("guidance_scale", "[]"),
    ("guidance_scale", "[1.0, Infinity]"),
    ("sigmas", "[]"),
    ("outpaint", "[1]"),
    ("guidance_interval", "[0.0]"),
    ("passes", '"0.5"'),
    ("width", "1" + "0" * 400),
    ("seed", "1" + "0" * 400),
    ("step_cache", '"foo"'),
    ("prompt", '"\\ud800"'),
    ("model", '"\\udfff"'),
    ("\\ud800", "1"),
    ("loras", f'[{{"name": "a", "scale": 1{"0" * 400}, "digest": "sha256:{"0" * 64}"}}]'),
]


@pytest.mark.parametrize(("name", "value"), DAMAGED, ids=lambda text: text[:12])
def test_crafted_parameters(name: str, value: str, client: TestClient) -> None:
    values = json.loads(PLAIN.to_json())
    values.pop(name, None)
    text = f'{json.dumps(values)[:-1]}, "{name}": {value}}}'
    content = saying(text, "max_zimage")
    assert post(client, PNG_INFO, content) == {"info": text, "items": {}, "parameters": {}}
    error = post(client, PARAMETERS, content, 400)["error"]
    assert error["param"] == "image"
    assert len(error["message"]) < 400
    with pytest.raises(ImageFileError, match="damaged"):
        read_any(content)


@pytest.mark.parametrize("weight", ["1.2.3", ".", "-."])
def test_crafted_text_of_another_tool(weight: str, client: TestClient) -> None:
    text = f'a star <lora:x:{weight}>\nSteps: 4, Sampler: Euler, Seed: "\\ud800"'
    assert post(client, PNG_INFO, saying(text))["parameters"]["Seed"] == '"\\ud800"'
    message = post(client, PARAMETERS, saying(text), 400)["error"]["message"]
    assert f"the weight of <lora:x> is '{weight}', which is no number" in message
    with pytest.raises(RequestError, match="Seed is"):
        read_any(saying(text))
