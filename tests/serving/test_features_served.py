"""Features over HTTP: made by one route, drawn from by the others, kept for prompts that come again."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage import PromptFeatures
from max_zimage.images.texts import embedded_text
from max_zimage.request.metadata import GenerationParameters
from max_zimage.serving.worker.messages import read_failure
from max_zimage.serving.worker.prompt_features import read_features
from tests.references.diffusers_runs import Pair
from tests.references.servers import Server
from tests.serving.test_step_scheduler import Worker, alone, assert_same

PROMPT = "a red star on a blue background"
SMALL: dict[str, Any] = {"size": "128x128", "steps": 3, "seed": 5}


def pixels(answer: Any) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    files = [io.BytesIO(base64.b64decode(each["b64_json"])) for each in answer.json()["data"]]
    return [np.asarray(Image.open(file)) for file in files]


def encoded(server: Server, **body: Any) -> tuple[str, PromptFeatures]:
    answer = server.post("/v1/prompt-features", prompt=PROMPT, **body)
    assert answer.status_code == 200, answer.text
    text = answer.json()["b64_json"]
    features = PromptFeatures.from_bytes(base64.b64decode(text))
    assert answer.json()["digest"] == features.digest
    assert answer.json()["shape"] == list(features.positive.shape)
    return text, features


def test_features_of_the_server_are_those_of_python_and_draw_the_same(
    server: Server, embedded: Pair, tmp_path: Any
) -> None:
    text, features = encoded(server, negative_prompt="dark", system_prompt="You paint.", hidden_layer=-3)
    ours = embedded.ours.encode(PROMPT, negative_prompt="dark", system_prompt="You paint.", hidden_layer=-3)
    assert (features.digest, features.made_by) == (ours.digest, ours.made_by)
    asked: dict[str, Any] = SMALL | {"guidance_scale": 2.0, "n": 2}
    answer = server.post("/v1/images/generations", features=text, **asked)
    around: dict[str, Any] = {"negative_prompt": "dark", "system_prompt": "You paint.", "hidden_layer": -3}
    for found, expected in zip(pixels(answer), pixels(server.draw(PROMPT, **asked, **around)), strict=True):
        np.testing.assert_array_equal(found, expected)
    (tmp_path / "a.png").write_bytes(base64.b64decode(answer.json()["data"][1]["b64_json"]))
    said = GenerationParameters.from_json(embedded_text(tmp_path / "a.png"))
    assert (said.prompt, said.seed, said.features_digest) == (PROMPT, 6, features.digest)


def test_a_negative_prompt_that_is_text_and_an_image(server: Server) -> None:
    text, _ = encoded(server)
    asked = SMALL | {"guidance_scale": 2.0, "negative_prompt": "dark"}
    found = pixels(server.post("/v1/images/generations", features=text, prompt=PROMPT, **asked))
    np.testing.assert_array_equal(found, pixels(server.draw(PROMPT, **asked)))
    content = io.BytesIO()
    Image.fromarray(found[0]).save(content, format="PNG")
    image = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    edit: dict[str, Any] = {"image": image, "steps": 3, "seed": 2, "guidance_scale": 2.0}
    found = pixels(server.post("/v1/images/edits", features=text, **edit))
    np.testing.assert_array_equal(found, pixels(server.post("/v1/images/edits", prompt=PROMPT, **edit)))


def test_prompts_that_come_again_are_not_encoded_again(server: Server) -> None:
    def figure(name: str) -> float:
        return server.metric(f'zimage_embedding_cache{{figure="{name}"}}')

    prompt = "a yellow triangle, and this prompt is nowhere else"
    first = pixels(server.draw(prompt, **SMALL, guidance_scale=0.0))
    hits, misses = figure("hits"), figure("misses")
    again = pixels(server.draw(prompt, **SMALL, guidance_scale=0.0))
    np.testing.assert_array_equal(first, again)
    assert (figure("hits"), figure("misses")) == (hits + 1, misses)
    assert figure("bytes") > 0
    assert figure("entries") > 0


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/images/generations", {}, "prompt", "field required"),
    ("/v1/images/generations", {"features": "%"}, "features", "must be base64 of a file of features"),
    ("/v1/images/generations", {"features": base64.b64encode(b"\x80\x04.").decode()}, "features", "is a Python pickle"),
    ("/v1/images/generations", {"features": ""}, "features", "is no safetensors file"),
    (
        "/v1/images/generations",
        {
            "features": base64.b64encode(PromptFeatures(positive=np.ones((3, 8), np.float32)).to_bytes()).decode(),
            "prompt": "a",
        },
        "features",
        "features have the width 8, and this checkpoint takes 128",
    ),
    ("/v1/prompt-features", {}, "prompt", "field required"),
    ("/v1/prompt-features", {"prompt": "a", "hidden_layer": 99}, "hidden_layer", "hidden_layer must be from"),
    ("/v1/prompt-features", {"prompt": "a", "model": "other"}, "model", "this server has"),
    ("/v1/prompt-features", {"prompt": "a" * 501}, "prompt", "at most 500 characters"),
    ("/v1/prompt-features", {"prompt": "a", "seed": 3}, "seed", "is no field of this route"),
]


@pytest.mark.parametrize(("path", "body", "param", "says"), BAD)
def test_what_is_refused(path: str, body: dict[str, Any], param: str, says: str, server: Server) -> None:
    answer = server.post(path, **body)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


@pytest.fixture
def worker(embedded: Pair) -> Worker:
    return Worker(embedded.ours)


def given(worker: Worker, features: PromptFeatures, prompt: str, **options: Any) -> Any:
    """A request of a prompt, as it is where features stand in the prompt's place."""
    asked = worker.ask(prompt, **options)
    asked.features, asked.negative_features = features.positive, features.negative
    asked.sharing = asked.sharing.replace('"has_features": false', '"has_features": true')
    return asked


def test_requests_with_features_share_a_batch_and_others_do_not(worker: Worker, embedded: Pair) -> None:
    first = given(worker, embedded.ours.encode(PROMPT, negative_prompt="dark"), PROMPT, negative_prompt="dark")
    second = given(
        worker, embedded.ours.encode("a blue ring"), "a blue ring", seed=6, negative_prompt="red", num_images=2
    )
    third = worker.ask("a blue ring", seed=6)
    worker.finish()
    assert [worker.steps(each)[0][1] for each in (first, second, third)] == [3, 3, 1]
    assert_same(worker.pictures(first), alone(embedded.ours, PROMPT, negative_prompt="dark"))
    expected = alone(embedded.ours, "a blue ring", 6, negative_prompt="red", num_images_per_prompt=2)
    assert_same(worker.pictures(second), expected)
    assert_same(worker.pictures(third), alone(embedded.ours, "a blue ring", 6))


def test_what_is_only_encoded_takes_its_turn(worker: Worker, embedded: Pair) -> None:
    drawn = worker.ask("a blue ring", seed=6)
    asked = worker.ask(PROMPT, negative_prompt="dark")
    asked.encodes = [embedded.ours.tokenizer.template_digest, embedded.ours.tokenizer.digest]
    worker.finish()
    features = read_features(worker.told[asked.request_id][-1].result)
    ours = embedded.ours.encode(PROMPT, negative_prompt="dark")
    assert (features.digest, features.made_by) == (ours.digest, ours.made_by)
    assert_same(worker.pictures(drawn), alone(embedded.ours, "a blue ring", 6))


def test_features_that_are_not_finite_are_a_failure_that_says_why(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: Any) -> list[PromptFeatures]:
        rows = np.ones((3, 8), np.float32)
        rows[1, 2] = np.inf
        return [PromptFeatures(positive=np.ones((2, 8), np.float32), negative=rows)]

    monkeypatch.setattr("max_zimage.serving.worker.prompt_features.features_of_ids", broken)
    asked = worker.ask(PROMPT)
    asked.encodes = ["template", "tokenizer"]
    worker.finish()
    *_, failure, end = worker.told[asked.request_id]
    found = read_failure(failure.result)
    assert found is not None
    assert found.code == "not_finite"
    assert found.message.startswith("hidden states of the text encoder came out as NaN or infinity; what may have")
    assert end.is_done
    assert found.message in caplog.text
    again = worker.ask("a blue ring", seed=6)  # others are served
    worker.finish()
    assert worker.pictures(again)
