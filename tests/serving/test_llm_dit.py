"""llm-dit's routes: its fields, defaults and headers, the same pictures as the pipeline's, and what is refused."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.request.metadata import GenerationParameters
from max_zimage.serving.http.routes_llm_dit import DEFAULTS, GENERATE, arguments
from tests.references.servers import Server

PROMPT = "a red star on a blue background"
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 3, "seed": 5}


def post(server: Server, route: str = "generate", **body: Any) -> Any:
    return server.post(f"/api/{route}", **{"prompt": PROMPT, **body})


def test_what_is_not_said_is_llm_dits() -> None:
    said = arguments(GENERATE(prompt="x"))
    assert said == {
        "prompt": "x", "height": 1024, "width": 1024, "num_inference_steps": 9, "guidance_scale": 0.0,
        "cfg_normalization": 0.0, "cfg_truncation": 1.0, "shift": 3.0, "long_prompt_mode": "interpolate",
        "hidden_layer": -2,
    }  # fmt: skip
    assert arguments(GENERATE(prompt="x", dype={"enabled": False, "dype_scale": 9.0})) == said  # type: ignore[arg-type]


def test_a_picture_with_its_headers(server: Server, pipeline: ZImagePipeline) -> None:
    answer = post(server, **SMALL, template=None, dype=None)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-seed"] == "5"
    assert re.fullmatch(r"\d+\.\d\d", answer.headers["x-generation-time"])
    assert "x-history-id" not in answer.headers
    picture = Image.open(io.BytesIO(answer.content))
    expected = pipeline(
        PROMPT, width=128, height=128, num_inference_steps=3, seed=5, guidance_scale=0.0, shift=3.0,
        long_prompt_mode="interpolate", output_type="np",
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected)[0])
    kept = GenerationParameters.from_json(picture.text["max_zimage"])  # type: ignore[attr-defined]
    assert (kept.shift, kept.guidance_scale, kept.long_prompt_mode) == (3.0, 0.0, "interpolate")


def test_a_seed_that_is_not_given_is_told(server: Server) -> None:
    asked = {name: value for name, value in SMALL.items() if name != "seed"}
    first = post(server, **asked)
    again = post(server, **asked, seed=int(first.headers["x-seed"]))
    assert first.content == again.content


def test_the_other_fields(server: Server, pipeline: ZImagePipeline) -> None:
    more: dict[str, Any] = {
        "guidance_scale": 2.0, "cfg_normalization": 1.0, "cfg_truncation": 0.9, "hidden_layer": -3,
        "slg_scale": 2.0, "slg_layers": [1, 2], "slg_start": 0.0, "slg_stop": 0.9, "system_prompt": "You paint.",
        "thinking_content": "Bright.",
    }  # fmt: skip
    answer = post(server, **SMALL, **more, shift=2.0, force_think_block=True, strip_quotes=True)
    assert answer.status_code == 200, answer.text
    expected = pipeline(
        PROMPT, width=128, height=128, num_inference_steps=3, seed=5, shift=2.0, long_prompt_mode="interpolate",
        output_type="np", **more,
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), np.asarray(expected)[0])
    quoted = server.post("/api/generate", prompt='a "red" star', strip_quotes=True, **SMALL)
    plain = server.post("/api/generate", prompt="a red star", **SMALL)
    assert quoted.content == plain.content


def test_dype_brings_its_passes() -> None:
    two = arguments(GENERATE.model_validate({"prompt": "x", "steps": 4, "dype": {"enabled": True, "method": "ntk"}}))
    assert (two["dype"], two["dype_scale"], two["dype_exponent"]) == ("ntk", 2.0, 2.0)
    assert two["passes"] == [{"scale": 0.5, "steps": 4}, {"scale": 1.0, "steps": 4, "strength": 0.5}]
    three: dict[str, Any] = {"enabled": True, "multipass": "threepass", "pass2_strength": 0.6}
    passes = arguments(GENERATE.model_validate({"prompt": "x", "dype": three}))["passes"]
    assert [(each["scale"], each.get("strength")) for each in passes] == [(0.25, None), (0.5, 0.6), (1.0, 0.4)]
    one = {"enabled": True, "multipass": "single"}
    assert "passes" not in arguments(GENERATE.model_validate({"prompt": "x", "dype": one}))


@pytest.mark.filterwarnings("ignore:dype vision_yarn changes nothing here")
def test_dype_is_drawn(server: Server, pipeline: ZImagePipeline) -> None:
    answer = post(server, **SMALL, dype={"enabled": True})
    assert answer.status_code == 200, answer.text
    expected = pipeline(
        PROMPT, width=128, height=128, seed=5, guidance_scale=0.0, shift=3.0, long_prompt_mode="interpolate",
        passes=[{"scale": 0.5, "steps": 3}, {"scale": 1.0, "steps": 3, "strength": 0.5}], dype="vision_yarn",
        output_type="np",
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), np.asarray(expected)[0])


def test_prompts_are_formatted_and_encoded(server: Server, pipeline: ZImagePipeline) -> None:
    around = {"system_prompt": "You paint."}
    formatted = post(server, "format-prompt", **around).json()
    text = f"<|im_start|>system\nYou paint.<|im_end|>\n<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert (formatted["formatted_prompt"], formatted["char_count"]) == (text, len(text))
    features = pipeline.encode(PROMPT, system_prompt="You paint.")
    assert (formatted["token_count"], formatted["max_tokens"]) == (features.tokens, 1504)
    encoded = post(server, "encode", **around).json()
    assert encoded.pop("encode_time") > 0
    assert encoded == {
        "shape": list(features.positive.shape), "dtype": "float32", "token_count": features.tokens, "prompt": PROMPT,
        "formatted_prompt": text,
    }  # fmt: skip


def test_hidden_states_of_a_text_that_is_formatted(server: Server, pipeline: ZImagePipeline) -> None:
    text = pipeline.tokenizer.render(PROMPT)
    for layer in (-2, -3):
        expected = pipeline.encode(PROMPT, hidden_layer=layer).positive
        answer = server.post("/v1/hidden_states", input=text, layer=layer, max_length=512).json()
        packed = base64.b64decode(answer.pop("hidden_states"))
        assert answer == {
            "shape": list(expected.shape), "dtype": "float32", "layer": layer, "encoding_format": "base64",
            "model": server.client.get("/v1/models").json()["data"][0]["id"],
        }  # fmt: skip
        np.testing.assert_array_equal(np.frombuffer(packed, "<f4").reshape(answer["shape"]), expected)
    plain = server.post("/v1/hidden_states", input=text, layer=-3, encoding_format="float").json()
    np.testing.assert_array_equal(np.array(plain["hidden_states"], np.float32), expected)
    bare = server.post("/v1/hidden_states", input=PROMPT).json()  # no template is put around it
    assert bare["shape"][0] == len(pipeline.tokenizer.encode_formatted(PROMPT)) < len(expected)


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({}, 400, "input", "field required"),
        ({"input": ""}, 400, "input", "string should have at least 1 character"),
        ({"input": PROMPT, "model": "qwen3-4b"}, 404, "model", "this server has"),
        ({"input": PROMPT, "layer": 99}, 400, "layer", "layer must be from"),
        ({"input": PROMPT, "max_length": 3}, 400, "input", "at most 3 are allowed; shorten it or raise max_length (up"),
        ({"input": PROMPT, "max_length": 0}, 400, "max_length", "max_length must be"),
        ({"input": PROMPT, "encoding_format": "hex"}, 400, "encoding_format", "input should be 'base64' or 'float'"),
        ({"input": [PROMPT]}, 400, "input", "input should be a valid string"),
        ({"input": "a" * 501}, 400, "input", "at most 500 characters"),
        ({"input": PROMPT, "pooling": "mean"}, 400, "pooling", "is no field of this route"),
    ],
)
def test_hidden_states_that_are_refused(
    body: dict[str, Any], status: int, param: str, says: str, server: Server
) -> None:
    answer = server.post("/v1/hidden_states", **body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert says in answer.json()["error"]["message"]


def test_what_there_is(server: Server) -> None:
    templates = server.client.get("/api/templates").json()["templates"]
    assert len(templates) >= 44
    assert all(each["name"] for each in templates)
    drawn = post(server, "format-prompt", template=templates[0]["name"])
    assert drawn.status_code == 200
    config = server.client.get("/api/generation-config").json()
    assert (config["steps"], config["long_prompt_mode"]) == (9, "interpolate")
    assert set(config) <= set(GENERATE.model_fields)
    assert len(config) == len(DEFAULTS)
    sizes = server.client.get("/api/resolution-config").json()
    assert (sizes["vae_multiple"], sizes["max_pixels"], sizes["default_width"]) == (16, 262144, 1024)
    assert not sizes["supports_fmtt"]


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("generate", {}, "width", "this server allows at most 262144 pixels"),
    ("generate", {"step": 3}, "step", "step: is no field of this route, the nearest is steps; leave it out"),
    ("generate", {"fmtt_scale": 1.0}, "fmtt_scale", "fmtt_scale: is guidance by another model's reward"),
    ("generate", {"vl_alpha": 0.3}, "vl_alpha", "is conditioning by a vision model"),
    ("generate", {"negative_prompt": "y"}, "negative_prompt", "/v1/images/generations has it"),
    ("generate", {"dynamic_shift": True}, "dynamic_shift", "/v1/images/generations has it"),
    ("generate", {"shift_terminal": 0.1}, "shift_terminal", "/v1/images/generations has it"),
    ("generate", {"steps": "9"}, "steps", "steps: input should be a valid integer, got '9'"),
    ("generate", {"width": 100}, "width", "width must be a multiple of 16, got 100"),
    ("generate", {"long_prompt_mode": "cut"}, "long_prompt_mode", "long_prompt_mode must be one of"),
    ("generate", {"template": "gone"}, "template", "there is no template 'gone'"),
    ("generate", {"force_think_block": True}, "force_think_block", "give thinking_content, or leave it out"),
    ("generate", {"dype": {"enabled": True, "method": "pi"}}, "dype", "dype must be one of"),
    ("generate", {"dype": {"enabled": True, "base_shift": 1.0}}, "dype", "base_shift and max_shift do nothing"),
    ("generate", {"dype": {"scale": 2.0}}, "dype.scale", "is no field of this route"),
    ("encode", {"width": 128}, "width", "is no field of this route"),
    ("format-prompt", {"prompt": 3}, "prompt", "input should be a valid string"),
]


@pytest.mark.parametrize(("route", "body", "param", "says"), BAD, ids=lambda value: "")
def test_what_is_refused(route: str, body: dict[str, Any], param: str, says: str, server: Server) -> None:
    answer = post(server, route, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert says in answer.json()["detail"]
