"""The real server on the embedded model, over HTTP: pictures from prompts and images, at once and as events."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.request.metadata import read_parameters
from tests.references.scenes import recognize
from tests.references.servers import KEY, Server, error_of


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def pixels(data: str) -> np.ndarray:
    return np.asarray(opened(data).convert("RGB"))


def png(width: int = 128, height: int = 128) -> bytes:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:] = (30, 60, 220)
    picture[height // 4 : -height // 4, width // 4 : -width // 4] = (220, 30, 30)
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return content.getvalue()


def test_the_openai_client_gets_what_it_asks_for(server: Server, pipeline: ZImagePipeline) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    assert [model.id for model in client.models.list()] == ["tiny-zimage"]
    made = client.images.generate(
        model="tiny-zimage",
        prompt="a red star on a blue background",
        n=2,
        size="128x128",
        extra_body={"seed": 7, "steps": 8, "guidance_scale": 2.0},
    )
    assert made.data is not None
    assert len(made.data) == 2
    colour, _, background = recognize(pixels(str(made.data[0].b64_json)))
    assert (colour, background) == ("red", "blue")
    drawn = pipeline(
        "a red star on a blue background",
        height=128,
        width=128,
        num_inference_steps=8,
        guidance_scale=2.0,
        seed=7,
        num_images_per_prompt=2,
    )
    for item, expected in zip(made.data, drawn, strict=True):
        np.testing.assert_array_equal(pixels(str(item.b64_json)), np.asarray(expected))


def test_the_command_line_draws_the_same_again_from_the_served_file(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (item,) = server.draw("a white ring on green", seed=11, size="144x128").json()["data"]
    assert item["seed"] == 11
    (tmp_path / "served.png").write_bytes(base64.b64decode(item["b64_json"]))
    assert read_parameters(tmp_path / "served.png").prompt == "a white ring on green"
    again = tmp_path / "again.png"
    assert main(["generate", "--from", str(tmp_path / "served.png"), "--output", str(again), "--quiet"]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(again)), pixels(item["b64_json"]))


def test_what_is_not_said_is_the_checkpoints(server: Server) -> None:
    answer = server.draw()
    assert answer.status_code == 200
    body = answer.json()
    assert (body["size"], body["quality"], body["output_format"]) == ("128x128", "auto", "png")
    parameters = opened(body["data"][0]["b64_json"]).text["max_zimage"]  # type: ignore[attr-defined]
    assert '"num_inference_steps": 8' in parameters
    assert '"guidance_scale": 2.0' in parameters
    low = opened(server.draw(quality="low").json()["data"][0]["b64_json"]).text["max_zimage"]  # type: ignore[attr-defined]
    assert '"num_inference_steps": 4' in low


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_by_url_in_every_format(kind: str, server: Server) -> None:
    more: dict[str, Any] = {} if kind == "png" else {"output_compression": 80}
    answer = server.draw(response_format="url", output_format=kind, steps=1, **more).json()
    url = answer["data"][0]["url"]
    assert url.startswith(server.url)
    picture = server.client.get(url)
    assert (picture.status_code, picture.headers["content-type"]) == (200, f"image/{kind}")
    assert Image.open(io.BytesIO(picture.content)).format == kind.upper()
    assert server.client.get(f"{url[:-8]}x/content").status_code == 404


def test_max_own_route(server: Server, pipeline: ZImagePipeline) -> None:
    options = {"width": 128, "height": 128, "steps": 4, "output_format": "png", "num_images": 2}
    body: dict[str, Any] = {"model": "tiny-zimage", "input": "a red star", "seed": 3}
    body |= {"provider_options": {"image": options}}
    answer = server.post("/v1/responses", **body)
    assert answer.status_code == 200, answer.text
    contents = answer.json()["output"][0]["content"]
    drawn = pipeline(
        "a red star", height=128, width=128, num_inference_steps=4, seed=3, num_images_per_prompt=2, output_type="np"
    )
    for content, expected in zip(contents, np.asarray(drawn), strict=True):
        np.testing.assert_array_equal(pixels(content["image_data"]), expected)
    cached = server.post("/v1/responses", **body, metadata={"step_cache": "first_block:threshold=0.5"})
    expected = pipeline(
        "a red star", height=128, width=128, num_inference_steps=4, seed=3, step_cache="first_block:threshold=0.5"
    )
    served = pixels(cached.json()["output"][0]["content"][0]["image_data"])
    np.testing.assert_array_equal(served, np.asarray(expected[0]))
    wrong = error_of(server.post("/v1/responses", **body, metadata={"step_cache": "teacache"}))
    assert (wrong["param"], wrong["message"][:44]) == ("metadata", "step_cache: a step cache is off, first_block")
    noted = server.post("/v1/responses", **body, metadata={"order": "17"})
    assert noted.json()["metadata"] == {"order": "17"}
    by_url = server.post(
        "/v1/responses", **body | {"provider_options": {"image": options | {"response_format": "url"}}}
    )
    url = by_url.json()["output"][0]["content"][0]["image_url"]
    assert server.client.get(url).headers["content-type"] == "image/png"


def test_step_caches(server: Server, pipeline: ZImagePipeline) -> None:
    asked: dict[str, Any] = {"seed": 3, "steps": 14, "guidance_scale": 2.0}
    named: dict[str, Any] = {"num_inference_steps": 14, "guidance_scale": 2.0, "seed": 3, "output_type": "np"}
    plain = pixels(server.draw("a red star", **asked).json()["data"][0]["b64_json"])
    for cache in ("first_block:threshold=0.2", "taylorseer"):
        answer = server.draw("a red star", **asked, step_cache=cache)
        served = pixels(answer.json()["data"][0]["b64_json"])
        np.testing.assert_array_equal(served, np.asarray(pipeline("a red star", step_cache=cache, **named))[0])
        assert not np.array_equal(served, plain)
    covered = error_of(server.draw("a red star", seed=3, step_cache="taylorseer"))
    assert covered["param"] == "step_cache"
    assert "its warm-up takes all 8 steps and nothing is left out; ask for more steps" in covered["message"]
    assert error_of(server.draw("a red star", step_cache="first_block:threshold=x"))["param"] == "step_cache"


def test_levels_of_ones_own(server: Server, pipeline: ZImagePipeline) -> None:
    asked: dict[str, Any] = {"seed": 3, "size": "128x128"}
    drawn = server.draw("a red star", **asked, sigmas=[1.0, 0.6, 0.2])
    expected = pipeline("a red star", height=128, width=128, sigmas=[1.0, 0.6, 0.2], seed=3, output_type="np")
    np.testing.assert_array_equal(pixels(drawn.json()["data"][0]["b64_json"]), np.asarray(expected)[0])
    assert error_of(server.draw("a red star", sigmas=[0.5, 0.7]))["param"] == "sigmas"
    assert "sigmas is given too" in error_of(server.draw("x", sigmas=[0.5], quality="low"))["message"]


def test_an_image_to_begin_with(server: Server, pipeline: ZImagePipeline) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    asked: dict[str, Any] = {"seed": 5, "strength": 0.5, "steps": 6}
    prompt = "a green circle on a black background"
    form = client.images.edit(image=("../../etc/passwd", png(), "image/png"), prompt=prompt, extra_body=asked)
    assert form.data is not None
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    as_json = server.post("/v1/images/edits", image=url, prompt=prompt, **asked).json()
    expected = pipeline(
        prompt,
        image=Image.open(io.BytesIO(png())),
        strength=0.5,
        num_inference_steps=6,
        seed=5,
    )
    for item in (str(form.data[0].b64_json), as_json["data"][0]["b64_json"]):
        np.testing.assert_array_equal(pixels(item), np.asarray(expected[0]))


def test_a_mask_in_transparency_is_what_openais_client_sends(server: Server, pipeline: ZImagePipeline) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    shown, content = np.full((128, 128, 4), 255, np.uint8), io.BytesIO()
    shown[40:90, 20:70, 3] = 0
    Image.fromarray(shown).save(content, format="PNG")
    prompt, asked = "a green circle on a black background", {"seed": 5, "steps": 3}
    files: dict[str, Any] = {"image": ("a.png", png(), "image/png"), "mask": ("b.png", content.getvalue(), "image/png")}
    form = client.images.edit(prompt=prompt, extra_body=asked, **files)
    white = 255 - shown[..., 3]
    image = Image.open(io.BytesIO(png()))
    expected = pipeline(prompt, image=image, mask_image=white, num_inference_steps=3, seed=5)
    assert form.data is not None
    np.testing.assert_array_equal(pixels(str(form.data[0].b64_json)), np.asarray(expected[0]))
    urls = [f"data:image/png;base64,{base64.b64encode(each).decode()}" for each in (png(), content.getvalue())]
    body: dict[str, Any] = {"image": urls[0], "prompt": prompt, **asked}
    as_json = server.post("/v1/images/edits", mask=urls[1], **body).json()
    np.testing.assert_array_equal(pixels(as_json["data"][0]["b64_json"]), np.asarray(expected[0]))
    both = error_of(server.post("/v1/images/edits", mask=urls[1], mask_image=urls[0], **body))
    assert both["param"] == "mask"
    assert "and both are given; leave one out" in both["message"]
    opaque = error_of(server.post("/v1/images/edits", mask=urls[0], **body))
    assert "a mask in black and white goes into mask_image" in opaque["message"]
    clear = error_of(server.post("/v1/images/edits", mask_image=urls[1], **body))
    assert clear["param"] == "mask_image"


def test_an_image_that_does_not_fit(server: Server) -> None:
    def post(image: bytes, **fields: str) -> httpx.Response:
        return server.client.post("/v1/images/edits", files={"image": ("x.png", image)}, data={"prompt": "x", **fields})

    odd = error_of(post(png(100, 130)))
    assert odd["param"] == "image"
    assert (
        "it has 100x130 pixels; the nearest size that fits is 96x128; resize it, or set resize to true"
        in odd["message"]
    )
    other = error_of(post(png(), size="256x256"))
    assert (
        "it has 128x128 pixels and size asks for 256x256; leave size out, resize it, or set resize to true"
        in other["message"]
    )
    made = post(png(100, 130), resize="true", steps="1")
    assert made.json()["size"] == "96x128"
    assert "is a GIF file; convert it to PNG, JPEG or WebP" in error_of(post(b"GIF89a"))["message"]
    assert "a form has it as a file, got text" in error_of(post(png(), mask="x"))["message"]
    remote = error_of(server.post("/v1/images/edits", image="http://127.0.0.1:1/x.png", prompt="x"))
    assert "fetches nothing" in remote["message"]


def kinds_of(events: Iterable[Any]) -> list[str]:
    return [event.type.partition(".")[2] for event in events]


def test_events_are_those_that_openais_client_knows(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    events = list(
        client.images.generate(
            prompt="a red star on a blue background",
            stream=True,
            partial_images=2,
            extra_body={"seed": 3, "guidance_scale": 2.0},
        )
    )
    assert kinds_of(events) == ["partial_image", "partial_image", "completed"]
    for event, known in zip(events, [ImageGenPartialImageEvent] * 2 + [ImageGenCompletedEvent], strict=True):
        assert isinstance(event, known)
        type(event).model_validate(event.model_dump(), strict=True)  # nothing that the API names is missing
    assert [event.partial_image_index for event in events if isinstance(event, ImageGenPartialImageEvent)] == [0, 1]
    assert opened(str(events[0].b64_json)).size == (16, 16)
    plain = server.draw(seed=3, guidance_scale=2.0).json()["data"][0]["b64_json"]
    assert events[-1].b64_json == plain
    edits = client.images.edit(image=("a.png", png(), "image/png"), prompt="x", stream=True, extra_body={"steps": 3})
    (made,) = edits
    assert isinstance(made, ImageEditCompletedEvent)
    type(made).model_validate(made.model_dump(), strict=True)
    assert kinds_of(client.images.generate(prompt="x", stream=True, extra_body={"progress": False})) == ["completed"]


def test_steps_are_told_where_they_are_asked_for(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    asked: dict[str, Any] = {"progress": True, "steps": 3}
    events: list[Any] = list(client.images.generate(prompt="x", stream=True, partial_images=1, extra_body=asked))
    kinds = kinds_of(events)
    assert (kinds.count("progress"), kinds.count("partial_image"), kinds[-1]) == (4, 1, "completed")
    assert [(event.step, event.steps) for event in events if event.type == "image_generation.progress"] == [
        (step, 3) for step in range(4)
    ]
    form = client.images.edit(
        image=("a.png", png(), "image/png"), prompt="x", stream=True, extra_body=asked | {"strength": 1.0}
    )
    assert kinds_of(form) == ["progress"] * 4 + ["completed"]
    refused = server.draw(progress=True)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "progress")


def test_requests_that_wait_together_share_steps(server: Server, pipeline: ZImagePipeline) -> None:
    before = server.metric("zimage_batch_pictures_sum"), server.metric("zimage_batch_pictures_count")
    with ThreadPoolExecutor(3) as pool:
        named = {"X-Request-ID": "first"}
        first = pool.submit(server.draw, "a red star", named, seed=1, steps=40, size="256x256")
        server.wait_for_status("first", "running")
        others = [pool.submit(server.draw, "a blue ring", seed=seed, steps=4) for seed in (2, 3)]
        answers = [future.result() for future in (first, *others)]
    assert [answer.status_code for answer in answers] == [200] * 3
    after = server.metric("zimage_batch_pictures_sum"), server.metric("zimage_batch_pictures_count")
    assert (after[0] - before[0], after[1] - before[1]) == (5, 3)  # one alone, and two that say 2 each
    for seed, answer in zip((2, 3), answers[1:], strict=True):
        alone = np.asarray(pipeline("a blue ring", num_inference_steps=4, seed=seed, output_type="np"))[0]
        served = pixels(answer.json()["data"][0]["b64_json"])
        assert np.mean(np.abs(served.astype(int) - alone) <= 1) > 0.999


def test_pytorch_is_left_out_where_it_is_installed(server: Server) -> None:
    """This server would find it, other than those of other tests."""
    processes = server.processes()
    assert len(processes) >= 2
    for process in processes:
        assert "libtorch" not in Path(f"/proc/{process}/maps").read_text()
