"""A picture's parameters over HTTP: what is answered draws the same picture again, and what is none is refused."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.references.servers import Server, error_of

PROMPT = 'a red "star", \u7ea2\u8272 on blue'


def url_of(content: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def read(server: Server, content: bytes) -> dict[str, Any]:
    answer = server.post("/v1/parameters", image=url_of(content))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_what_is_answered_draws_it_again(kind: str, server: Server) -> None:
    asked: dict[str, Any] = {"seed": 5, "steps": 3, "size": "144x128", "sampler": "heun", "output_format": kind}
    asked |= {"guidance_scale": [3.0, 2.0, 0.0], "guidance_variant": "apg", "apg_eta": 0.5, "negative_prompt": "a ring"}
    asked |= {"hidden_layer": {"-2": 0.7, "-3": 0.3}, "variation_seed": 4, "variation_strength": 0.25}
    asked |= {
        "step_cache": "first_block:threshold=0.2",
        "vae_tiling": "blend",
        "vae_tile_size": 64,
        "vae_tile_overlap": 16,
    }
    drawn = base64.b64decode(server.draw(PROMPT, **asked).json()["data"][0]["b64_json"])
    found = read(server, drawn)
    assert (found["left_out"], found["needs"]) == ({}, {})
    assert {name: found["request"][name] for name in ("seed", "steps", "size", "sampler", "negative_prompt")} == {
        name: asked[name] for name in ("seed", "steps", "size", "sampler", "negative_prompt")
    }
    assert found["request"]["prompt"] == PROMPT
    assert "dype" not in found["request"], "what is as usual is not said"
    again = server.post("/v1/images/generations", **found["request"], output_format=kind).json()["data"][0]["b64_json"]
    np.testing.assert_array_equal(pixels(drawn), pixels(base64.b64decode(again)))
    assert read(server, base64.b64decode(again))["parameters"] == found["parameters"]


def test_what_a_picture_does_not_hold_is_named(server: Server) -> None:
    content = io.BytesIO()
    Image.new("RGB", (128, 128), (30, 60, 220)).save(content, format="PNG")
    mask = io.BytesIO()
    Image.new("L", (128, 128), 255).save(mask, format="PNG")
    body: dict[str, Any] = {"image": url_of(content.getvalue()), "mask_image": url_of(mask.getvalue())}
    made = server.post("/v1/images/edits", prompt="a star", strength=0.5, steps=4, seed=1, **body).json()
    found = read(server, base64.b64decode(made["data"][0]["b64_json"]))
    assert set(found["needs"]) == {"image_digest", "image_height", "image_width", "mask_digest"}
    assert found["request"]["strength"] == 0.5
    assert "image" not in found["request"]


def test_what_is_none_is_refused(server: Server) -> None:
    plain = io.BytesIO()
    Image.new("RGB", (16, 16)).save(plain, format="PNG")
    other = io.BytesIO()
    comment = Image.Exif()
    Image.new("RGB", (16, 16)).save(other, format="JPEG", exif=comment, comment=b"x")
    large = io.BytesIO()
    Image.new("1", (5000, 5000)).save(large, format="PNG")
    for content, said in (
        (b"GIF89a", "is a GIF file; convert it to PNG, JPEG or WebP"),
        (b"", "empty"),
        (plain.getvalue(), "holds no generation parameters"),
        (other.getvalue(), "holds no generation parameters"),
        (plain.getvalue()[:40], "image"),
        (large.getvalue(), "has 5000x5000 pixels, at most 16777216 are allowed"),
    ):
        answer = server.post("/v1/parameters", image=url_of(content))
        error = error_of(answer)
        assert (answer.status_code, error["param"]) == (400, "image"), answer.text
        assert said in error["message"]
        assert "/" not in error["message"].replace("image/png", ""), "no path of the server's"
    assert error_of(server.post("/v1/parameters", image="http://127.0.0.1:1/x.png"))["param"] == "image"
    assert error_of(server.post("/v1/parameters"))["param"] == "image"
    text = server.client.post("/v1/parameters", content=b"{}", headers={"Content-Type": "text/plain"})
    assert text.status_code == 415
