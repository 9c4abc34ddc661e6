"""The real `max serve` on the embedded model: one request over HTTP, its picture, a clean end."""

from __future__ import annotations

import base64
import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage import TaylorSeer, ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.request.metadata import read_parameters
from tests.references.scenes import recognize
from tests.references.servers import STOP_SECONDS, Server, free_port

ARCHITECTURE = "max_zimage"
PROMPT = "a red star on a blue background"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MAX's own server with our architecture."""
    environment = {
        "MAX_SERVE_API_TYPES": '["openai","responses"]',  # the route of pictures is off by default
        "MAX_SERVE_METRICS_ENDPOINT_PORT": str(free_port()),
        "OTEL_SDK_DISABLED": "true",
    }
    flags = ["--model", str(EMBEDDED), "--served-model-name", "zimage", "--custom-architectures", ARCHITECTURE]
    flags += ["--devices", "cpu", "--host", "127.0.0.1"]
    flags += ["--taylorseer", "--taylorseer-cache-interval", "2", "--taylorseer-warmup-steps", "3"]
    folder = tmp_path_factory.mktemp("serve")
    with Server(folder, flags, command=("max", "serve"), environment=environment, torch=True) as running:
        yield running
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(STOP_SECONDS)


def post(server: Server, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = server.post("/v1/responses", model="zimage", **body)
    return answer.status_code, answer.json()


def pictures(answer: dict[str, Any]) -> list[np.ndarray]:
    contents = answer["output"][0]["content"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content["image_data"])))) for content in contents]


def test_a_served_picture_is_what_was_asked_for_and_what_the_pipeline_draws(
    server: Server, pipeline: ZImagePipeline
) -> None:
    """Under the step cache of MAX's flags, without it where the request says so, and by a sampler that draws noise."""
    options = {"width": 128, "height": 128, "steps": 8, "guidance_scale": 2.0, "output_format": "png", "num_images": 2}
    asked: dict[str, Any] = {"input": PROMPT, "seed": 7, "provider_options": {"image": options}}
    flagged = TaylorSeer(cache_interval=2, warmup_steps=3, max_order=1)
    sampled = {"step_cache": "off", "sampler": "dpmpp_sde", "sigma_shape": "sgm_uniform"}
    for more, named in (
        ({"metadata": {"step_cache": "off"}}, {}),
        ({}, {"step_cache": flagged}),
        ({"metadata": sampled}, sampled),
    ):
        status, answer = post(server, **asked, **more)
        assert status == 200, answer
        served = pictures(answer)
        assert [picture.shape for picture in served] == [(128, 128, 3)] * 2
        colour, _, background = recognize(served[0])
        assert (colour, background) == ("red", "blue")
        drawn = pipeline(
            PROMPT,
            height=128,
            width=128,
            num_inference_steps=8,
            guidance_scale=2.0,
            seed=7,
            num_images_per_prompt=2,
            **named,
        )
        for picture, expected in zip(served, drawn, strict=True):
            np.testing.assert_array_equal(picture, np.asarray(expected))


def test_a_bad_request_is_told_why(server: Server) -> None:
    status, answer = post(server, input=PROMPT, provider_options={"image": {"width": 136, "steps": 5000}})
    assert status == 400
    assert answer["error"]["message"] == (
        "the request has 2 problems:\n- width must be a multiple of 16, got 136; the nearest are 128 and 144\n"
        "- num_inference_steps must be from 1 to 1000, got 5000"
    )


def test_a_long_prompt_is_read_where_the_request_allows_it(server: Server, pipeline: ZImagePipeline) -> None:
    """MAX names 512 tokens for every model of this kind; the field goes up to the checkpoint's positions."""
    asked: dict[str, Any] = {"input": "a red star on a blue background " * 75, "seed": 7}
    asked["provider_options"] = {"image": {"width": 128, "height": 128, "steps": 2, "output_format": "png"}}
    status, answer = post(server, **asked)
    assert status == 400
    assert "tokens, at most 512 are allowed; shorten it or raise max_sequence_length (up to 1504)" in str(answer)
    status, answer = post(server, **asked, metadata={"max_sequence_length": "1505"})
    assert (status, "max_sequence_length must be from 1 to 1504, got 1505" in str(answer)) == (400, True)
    status, answer = post(server, **asked, metadata={"max_sequence_length": "1000", "hidden_layer": "-2:0.7,-3:0.3"})
    assert status == 200, answer
    drawn = pipeline(
        str(asked["input"]), height=128, width=128, num_inference_steps=2, seed=7, max_sequence_length=1000,
        hidden_layer={-2: 0.7, -3: 0.3}, step_cache=None,
    )  # fmt: skip
    np.testing.assert_array_equal(pictures(answer)[0], np.asarray(drawn[0]))


def test_a_served_picture_is_repeated_from_itself(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the step cache of MAX's flags, with an image to begin with."""
    image = Image.fromarray(np.arange(128 * 128 * 3).astype(np.uint8).reshape(128, 128, 3))
    image.save(tmp_path / "start.png")
    url = f"data:image/png;base64,{base64.b64encode((tmp_path / 'start.png').read_bytes()).decode()}"
    content = [{"type": "input_text", "text": PROMPT}, {"type": "input_image", "image_url": url}]
    options = {"steps": 8, "guidance_scale": 2.0, "output_format": "png", "strength": 0.7}
    status, answer = post(
        server,
        input=[{"role": "user", "content": content}],
        seed=7,
        provider_options={"image": options},
    )
    assert status == 200, answer
    encoded = answer["output"][0]["content"][0]["image_data"]
    (tmp_path / "a.png").write_bytes(base64.b64decode(encoded))
    parameters = read_parameters(tmp_path / "a.png")
    assert (parameters.model, parameters.dtype, parameters.device) == (str(EMBEDDED), "float32", "cpu")
    assert parameters.step_cache == "taylorseer:cache_interval=2,warmup_steps=3,max_order=1"
    monkeypatch.chdir(tmp_path)
    again = ["generate", "--quiet", "--from", "a.png", "--image", "start.png", "--output", "b.png"]
    assert main(again) == 0
    np.testing.assert_array_equal(np.asarray(Image.open("b.png")), pictures(answer)[0])
