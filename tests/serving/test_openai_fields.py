"""Fields of OpenAI's image routes as their clients and other servers' clients send them, row by row."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from max_zimage.request.metadata import GenerationParameters
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.schema import EDIT, GENERATION, given
from tests.references.servers import KEY, Server, error_of

SMALL: dict[str, Any] = {"size": "128x128", "steps": 2, "seed": 5}


def files(answer: Any) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(each["b64_json"]) for each in answer.json()["data"]]


def steps(content: bytes) -> int:
    picture = Image.open(io.BytesIO(content))
    return GenerationParameters.from_json(picture.text["max_zimage"]).num_inference_steps  # type: ignore[attr-defined]


def png() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(content, format="PNG")
    return content.getvalue()


def test_defaults_that_are_said_change_nothing(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    plain = client.images.generate(prompt="a red star", size="128x128", extra_body={"seed": 5, "steps": 2})
    said = client.images.generate(
        prompt="a red star",
        model="tiny-zimage",
        n=1,
        size="128x128",
        quality="auto",
        background="auto",
        moderation="auto",
        output_format="png",
        output_compression=100,
        response_format="b64_json",
        style="vivid",
        user="somebody",
        extra_body={"seed": 5, "num_inference_steps": 2, "safety_identifier": "4f2a"},
    )
    assert plain.data is not None
    assert said.data is not None
    assert plain.data[0].b64_json == said.data[0].b64_json
    assert "user 'somebody, 4f2a'" in server.text()
    low: Any = {"moderation": "low", "style": "natural"}
    again = client.images.generate(prompt="a red star", size="128x128", extra_body={"seed": 5, "steps": 2}, **low)
    assert again.data is not None
    assert again.data[0].b64_json == plain.data[0].b64_json


@pytest.mark.parametrize(("quality", "times"), [("low", 4), ("medium", 8), ("hd", 16), ("xhigh", 24), ("max", 32)])
def test_quality_is_a_number_of_steps(quality: str, times: int, server: Server) -> None:
    (content,) = files(server.draw("x", size="128x128", quality=quality))
    assert steps(content) == times


def test_steps_by_their_other_name(server: Server) -> None:
    asked: dict[str, Any] = {"size": "128x128", "seed": 5}
    by_one = files(server.draw("x", **asked, steps=2))
    assert files(server.draw("x", **asked, num_inference_steps=2)) == by_one
    assert files(server.draw("x", **asked, num_inference_steps=2, steps=2)) == by_one
    differ = error_of(server.draw("x", **asked, num_inference_steps=3, steps=2))
    assert differ["param"] == "num_inference_steps"
    assert "another name of steps, and they are 3 and 2; leave one of the two out" in differ["message"]
    low = error_of(server.draw("x", num_inference_steps=3, quality="low"))
    assert low["param"] == "quality"
    body = EDIT.model_validate({"image": "x", "num_inference_steps": 4})
    assert given(body) == {"num_inference_steps": 4}
    with pytest.raises(ApiError, match="another name of steps"):
        given(GENERATION.model_validate({"num_inference_steps": 4, "steps": 5}))


def test_compression_is_the_quality_of_the_file(server: Server) -> None:
    def drawn(kind: str, quality: int | None) -> bytes:
        more: dict[str, Any] = {} if quality is None else {"output_compression": quality}
        (content,) = files(server.draw("x", **SMALL, output_format=kind, **more))
        return content

    whole = np.asarray(Image.open(io.BytesIO(drawn("png", 100))))
    for kind in ("jpeg", "webp"):
        assert drawn(kind, None) == drawn(kind, 100)
        assert len(drawn(kind, 0)) < len(drawn(kind, 60)) < len(drawn(kind, 100))
        read = np.asarray(Image.open(io.BytesIO(drawn(kind, 100))).convert("RGB")).astype(int)
        assert np.abs(read - whole).max() <= (0 if kind == "webp" else 8)
    for wrong in (-1, 101, 50.5):
        assert error_of(server.draw("x", output_compression=wrong))["param"] == "output_compression"
    assert error_of(server.draw("x", output_compression=0))["message"].startswith("output_compression: png has no")


def test_edits_take_a_list_of_one_and_the_default_fidelity(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    more: dict[str, Any] = {"prompt": "x", "extra_body": {"seed": 5, "steps": 2}}
    file = ("a.png", png(), "image/png")
    one = client.images.edit(image=file, **more)
    listed = client.images.edit(image=[file], input_fidelity="low", **more)
    assert one.data is not None
    assert listed.data is not None
    assert one.data[0].b64_json == listed.data[0].b64_json
    with pytest.raises(openai.BadRequestError, match="one file may be sent under this name"):
        client.images.edit(image=[file, file], **more)
    with pytest.raises(openai.BadRequestError, match="input should be 'low', got 'high'"):
        client.images.edit(image=file, input_fidelity="high", **more)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"moderation": "high"}, "moderation", "input should be 'auto' or 'low', got 'high'"),
        ({"style": "oil"}, "style", "input should be 'vivid' or 'natural', got 'oil'"),
        ({"quality": "ultra"}, "quality", "got 'ultra'"),
        ({"background": "transparent"}, "background", "input should be 'auto' or 'opaque'"),
        ({"output_format": "svg"}, "output_format", "input should be 'png', 'jpeg' or 'webp', got 'svg'"),
        ({"safety_identifier": "x" * 513}, "safety_identifier", "at most 512 characters"),
        ({"frame_count": 2}, "frame_count", "frame_count: is no field of this route"),
        ({"complexity": "high"}, "complexity", "is no field of this route"),
        ({"n": 11}, "n", "at most 3 pictures a request, got 11"),
        ({"negativeprompt": "x"}, "negativeprompt", "the nearest is negative_prompt; leave it out"),
    ],
    ids=lambda value: "",
)
def test_what_is_refused(body: dict[str, Any], param: str, says: str, server: Server) -> None:
    answer = server.draw("x", **body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert error_of(answer)["param"] == param
    assert says in error_of(answer)["message"]
