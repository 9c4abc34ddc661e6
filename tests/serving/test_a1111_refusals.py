"""What AUTOMATIC1111's routes refuse, and what they take because it changes nothing."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from PIL import Image

from max_zimage.serving.http.a1111_body import IMG2IMG, INERT, TXT2IMG
from max_zimage.serving.http.routes_llm_dit import GENERATE, Dype
from max_zimage.serving.http.schema import EditRequest, ImageRequest
from tests.paths import ROOT
from tests.references.servers import KEY, Server
from tests.serving.test_a1111 import encoded, post

ONE_PIXEL = encoded(Image.new("L", (1, 1)))
WHITE = encoded(Image.new("L", (1, 1), 255))
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("txt2img", {"cfg_scale": 0.5}, "cfg_scale", "must be from 1, which is no guidance, to 1001, got 0.5"),
    ("txt2img", {"negative_prompt": "y", "cfg_scale": 1}, "negative_prompt", "guidance is off"),
    ("txt2img", {"sampler_name": "LMS"}, "sampler_name", "no sampler is called 'LMS' here; there are"),
    ("txt2img", {"scheduler": "Align Your Steps"}, "scheduler", "no scheduler is called 'Align Your Steps' here"),
    ("txt2img", {"sampler_name": "DPM++ 2M Karras", "scheduler": "Beta"}, "scheduler", "names another one"),
    ("txt2img", {"sampler_name": "Euler a", "eta": 0}, "eta", "noise between steps is drawn in full"),
    ("txt2img", {"steps": 0}, "steps", "steps must be from 1"),
    ("txt2img", {"width": 100}, "width", "width must be a multiple of 16, got 100; the nearest are 96 and 112"),
    ("txt2img", {"width": 1024, "height": 1024}, "width", "this server allows at most 262144 pixels"),
    ("txt2img", {"batch_size": 2, "n_iter": 2}, "batch_size", "at most 3 pictures a request, got 4"),
    ("txt2img", {"seed": -2}, "seed", "seed must be from 0"),
    ("txt2img", {"styles": ["a", "b"]}, "styles", "one template may be named, got 2"),
    ("txt2img", {"styles": ["gone"]}, "styles", "there is no template 'gone'"),
    ("txt2img", {"prompt": "a <lora:style:much>"}, "prompt", "must be <lora:NAME:WEIGHT> with one weight, a number"),
    ("txt2img", {"prompt": "a <lora:style:1:2>"}, "prompt", "with one weight"),
    ("txt2img", {"prompt": "a <hypernet:style:1>"}, "prompt", "<hypernet:...> is not known here"),
    ("txt2img", {"prompt": "a <lora:style>"}, "prompt", "this server has no adapters"),
    ("txt2img", {"enable_hr": True, "hr_scale": 1.01}, "hr_scale", "make whole pixels of 128x128, got 1.01"),
    ("txt2img", {"enable_hr": True, "hr_upscaler": "Latent"}, "hr_upscaler", "must be one of Lanczos, "),
    ("txt2img", {"enable_hr": True, "denoising_strength": 0}, "enable_hr", "strength"),
    ("txt2img", {"override_settings": {"eta_noise_seed_delta": 1}}, "override_settings", "no setting is called"),
    ("txt2img", {"override_settings": {"CLIP_stop_at_last_layers": 2}}, "override_settings", "is 1 here, got 2"),
    ("txt2img", {"alwayson_scripts": {"ControlNet": {"args": [{}]}}}, "alwayson_scripts", "no script 'ControlNet'"),
    ("txt2img", {"guidance_scale": 2.0}, "guidance_scale", "cfg_scale is guidance_scale + 1"),
    ("txt2img", {"samplername": "Euler"}, "samplername", "the nearest is sampler_name; leave it out"),
    ("img2img", {}, "init_images", "one image must be given, got 0"),
    ("img2img", {"init_images": ["%"]}, "init_images", "is no valid base64"),
    ("img2img", {"init_images": ["R0lGODlh"]}, "init_images", "is a GIF file; convert it to PNG, JPEG or WebP"),
    ("img2img", {"init_images": ["http://127.0.0.1/x.png"]}, "init_images", "fetches nothing"),
    ("img2img", {"resize_mode": 1}, "init_images", "an image is only resized here, got 1; send 0"),
    ("img2img", {"init_images": ["x"], "mask": "x", "inpaint_full_res": 2}, "inpaint_full_res", "true or false, got 2"),
    ("img2img", {"init_images": [ONE_PIXEL], "mask": ONE_PIXEL}, "mask", "is black all over"),
    ("img2img", {"init_images": [ONE_PIXEL], "mask": WHITE, "height": 0}, "height", "height must be"),
    ("img2img", {"init_images": [ONE_PIXEL], "mask": WHITE, "width": -(2**70)}, "width", "width must be"),
    ("img2img", {"init_images": [ONE_PIXEL], "mask": WHITE, "width": 2**40}, "width", "width must be"),
    ("img2img", {"init_images": [ONE_PIXEL], "mask": WHITE, "height": 1024, "width": 1024}, "width", "262144 pixels"),
    ("img2img", {"init_images": ["x"], "mask": "x", "inpainting_fill": 2}, "inpainting_fill", "0 and 1 are done here"),
    ("img2img", {"init_images": ["x"], "enable_hr": True}, "enable_hr", "is no field of this route"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "param", "says"), BAD, ids=lambda value: "")
def test_what_is_refused(route: str, body: dict[str, Any], param: str, says: str, server: Server) -> None:
    answer = post(server, route, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert says in answer.json()["detail"]
    assert answer.json()["error"]["message"] == answer.json()["detail"]


@pytest.mark.parametrize("name", INERT)
def test_fields_without_a_meaning_are_taken_where_they_change_nothing(name: str, server: Server) -> None:
    """All of them, by the schema alone; and what else is given is refused by name, on the server."""
    model = TXT2IMG if name in TXT2IMG.model_fields else IMG2IMG
    for value in (*INERT[name], None):
        if isinstance(value, (int, float, str, bool, list, dict)) or value is None:
            model.model_validate({name: value})
    body: dict[str, Any] = {name: {"any": "thing"}, "cfg_scale": 0.0}
    answer = post(server, **body)
    refused_by_name = f"{name}: not done here, got {{'any': 'thing'}}; leave it out" in answer.json()["detail"]
    assert refused_by_name == all(isinstance(value, (int, float, str, bool, list, dict)) for value in INERT[name])


def test_all_that_is_wrong_is_said_together(server: Server) -> None:
    detail = post(server, tiling=True, cfg_scale=0.0, sampler_name="LMS", hr_prompt="x").json()["detail"]
    for name in ("tiling", "hr_prompt", "cfg_scale", "sampler_name"):
        assert f"{name}: " in detail


def test_the_key_is_a_password_here_and_nowhere_else(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        without = client.get("/sdapi/v1/options")
        assert (without.status_code, without.headers["www-authenticate"]) == (401, 'Basic realm="max_zimage"')
        assert without.json()["detail"] == without.json()["error"]["message"]
        assert client.get("/sdapi/v1/options", auth=("anybody", KEY)).status_code == 200
        for wrong in (("anybody", "wrong"), (KEY, ""), ("", "")):
            assert client.get("/sdapi/v1/options", auth=wrong).status_code == 401
        damaged = client.get("/sdapi/v1/options", headers={"Authorization": "Basic %%%"})
        assert damaged.status_code == 401
        assert client.get("/v1/models", auth=("anybody", KEY)).status_code == 401
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/sdapi/v1/options", headers=bearer).status_code == 200
        foreign = client.post("/sdapi/v1/interrupt", headers={"Origin": "https://evil.example"}, auth=("a", KEY))
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "foreign_origin")
        plain = client.post("/sdapi/v1/txt2img", content=json.dumps({"prompt": "x"}), auth=("a", KEY))
        assert plain.status_code == 415


def test_the_page_has_every_field_of_every_dialect() -> None:
    text = (ROOT / "docs" / "dialects.md").read_text(encoding="utf-8")
    sections = dict(zip(*[iter(re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:])] * 2, strict=True))
    others = {"mask_image", "progress", "metadata"}  # not OpenAI's
    own = {*ImageRequest.model_fields, *EditRequest.model_fields, "num_inference_steps"} - others
    bodies = {
        "OpenAI": own,
        "llm-dit": {*GENERATE.model_fields, *Dype.model_fields},
        "AUTOMATIC1111": {*TXT2IMG.model_fields, *IMG2IMG.model_fields},
    }
    for section, fields in bodies.items():
        named = set(re.findall(r"`(\w+)`", sections[section]))
        assert fields - named == set(), f"docs/dialects.md, {section}, has nothing about these"
