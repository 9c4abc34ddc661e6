"""NaN and infinity behind the server and the command line: what is told, and what is not lost."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.modeling.types import RequestID
from max.pipelines.request.open_responses import OutputImageContent, OutputTextContent
from PIL import Image

from max_zimage import NotFiniteError, ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.pipeline.context import ZImageContext
from max_zimage.serving.dispatcher import Dispatcher
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http import answers
from max_zimage.serving.http.answers import ResponseFormat
from max_zimage.serving.worker.encoding import final_output
from max_zimage.serving.worker.messages import Failure, failure_output, read_failure
from max_zimage.serving.worker.previews import Previewer
from tests.references.diffusers_runs import Pair
from tests.references.noises import initial_noise
from tests.references.planting import planted, planted_copy
from tests.serving.test_dispatcher import FakeWorker, context, run, settled
from tests.serving.test_step_scheduler import Worker, alone, assert_same

NAN = float("nan")
MESSAGE = "the picture came out as NaN or infinity instead of colours; what may have caused it: "
FORM = ResponseFormat(event="image_generation", by_url=False, output_format="png", quality="auto", progress=False)


def noise_of(asked: ZImageContext) -> np.ndarray:
    """What the worker would draw."""
    return initial_noise(asked.seed or 0, asked.num_images_per_prompt, 16, asked.height, asked.width)


def failure_told(worker: Worker, request: RequestID) -> Failure | None:
    told = [result.result for result in worker.told[request] if result.result is not None]
    return next(filter(None, map(read_failure, told)), None)


@pytest.mark.parametrize("cache", [None, "taylorseer:cache_interval=2,warmup_steps=1"])
def test_requests_of_a_batch_each_get_their_own_answer(cache: str | None, embedded: Pair) -> None:
    worker = Worker(embedded.ours)
    good, bad = worker.ask("a red star", step_cache=cache), worker.ask("a blue ring", seed=6, step_cache=cache)
    partly = worker.ask("a green square", seed=7, num_images=2, step_cache=cache)
    bad.latents, partly.latents = noise_of(bad) * np.float32(1e30), noise_of(partly)
    partly.latents[0, 0, 0, 0] = np.inf
    worker.finish()
    assert {batch for _, batch in worker.steps(good)} == {4}
    assert_same(worker.pictures(good), alone(embedded.ours, "a red star", step_cache=cache))
    assert worker.is_cancelled(bad)
    failure = failure_told(worker, bad.request_id)
    assert failure is not None
    assert failure.code == "not_finite"
    assert failure.message.startswith(MESSAGE)
    assert ("the step cache taylorseer" in failure.message) == (cache is not None)
    first, second = worker.told[partly.request_id][-1].result.output
    assert isinstance(first, OutputTextContent)
    assert first.text == failure.message
    assert isinstance(second, OutputImageContent)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(second.image_data or ""))))
    assert_same([picture], alone(embedded.ours, "a green square", 8, step_cache=cache))


def test_who_does_not_listen_gets_the_end_alone(embedded: Pair) -> None:
    """MAX's own server takes the last message for an answer, whatever is in it."""
    worker = Worker(embedded.ours)
    good, bad = worker.ask("a red star"), worker.ask("a blue ring", seed=6)
    good.listens = bad.listens = False
    bad.latents = np.full_like(noise_of(bad), NAN)
    worker.finish()
    assert len(worker.told[bad.request_id]) == 1
    assert worker.is_cancelled(bad)
    assert len(worker.told[good.request_id]) == 1
    assert len(worker.pictures(good)) == 1


def test_no_preview_of_what_is_not_finite(embedded: Pair) -> None:
    worker = Worker(embedded.ours)
    asked = worker.ask("a red star", steps=4, num_images=2)
    asked.previews, asked.latents = 1, noise_of(asked)
    asked.latents[1] = NAN
    worker.finish()
    previews = [result.result.output[1:] for result in worker.told[asked.request_id][:-1]]
    assert [[image.format for image in each] for each in previews] == [[], [], ["0"], [], []]


def test_a_broken_encoder_costs_previews_and_not_the_server(embedded: Pair, caplog: pytest.LogCaptureFixture) -> None:
    with planted(embedded.ours.vae.provide(), "encoder.conv_out.bias", NAN, 0):
        previewer = Previewer(embedded.ours).fitted()
    assert previewer.draw(np.zeros((2, 4, 64), np.float32), 2, 2) == [None, None]
    assert "no previews and no image-to-image" in caplog.text


def test_the_server_says_what_the_worker_said() -> None:
    async def body(queue: Dispatcher, worker: FakeWorker) -> None:
        job = queue.submit(context("a"), "a")
        await settled()
        worker.say("a", 0)
        failure = Failure(code="not_finite", message=MESSAGE)
        worker.given["a"].put_nowait(failure_output(RequestID("a"), failure))
        worker.fail("a")
        with pytest.raises(ApiError) as caught:
            async for _ in queue.events(job):
                pass
        assert (caught.value.status, caught.value.code, str(caught.value)) == (500, "not_finite", MESSAGE)

    run(body)


def partial_output() -> GenerationOutput:
    asked = context("a")
    asked.output_format, asked.timesteps = "png", np.zeros(2, np.float32)
    pixels, finite = np.full((3, 16, 16, 3), 9, np.uint8), np.array([True, False, True])
    return final_output(asked, pixels, finite, MESSAGE)


def test_an_answer_with_a_picture_missing() -> None:
    job: Any = SimpleNamespace(context=context("a"), name="a")
    job.context.seed = 5
    nothing: Any = None
    data = asyncio.run(answers.images_answer(partial_output(), job, FORM, nothing, nothing))["data"]
    assert [item["seed"] for item in data] == [5, 6, 7]
    assert [item["b64_json"] is None for item in data] == [False, True, False]
    assert data[1]["error"] == {"message": MESSAGE, "type": "api_error", "param": None, "code": "not_finite"}


def test_events_with_a_picture_missing() -> None:
    """The error comes last: OpenAI's client raises it, and what comes behind is lost."""

    class Dispatched:
        async def events(self, job: object) -> Any:
            yield partial_output()

    async def collected() -> list[dict[str, Any]]:
        job, queue, nothing = SimpleNamespace(context=context("a"), name="a"), Dispatched(), None
        stream = answers.events(queue, job, FORM, nothing, nothing)  # type: ignore[arg-type]
        return [json.loads(event.decode().split("data: ", 1)[1]) async for event in stream]

    told = asyncio.run(collected())
    assert [event["type"].rpartition(".")[2] for event in told] == ["completed", "completed", "error"]
    assert [event["index"] for event in told] == [0, 2, [1]]
    assert told[-1]["error"]["code"] == "not_finite"


def test_the_command_line_goes_on_with_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second picture of three, as if its noise alone overflowed."""
    generate = ZImagePipeline.generate

    def broken(pipeline: ZImagePipeline, request: Any, callback: Any = None) -> Any:
        if request.seed == 6:
            raise NotFiniteError("the picture came out as NaN or infinity", [None], ["the step cache first_block"])
        return generate(pipeline, request, callback)

    monkeypatch.setattr(ZImagePipeline, "generate", broken)
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a red star", "--height", "64", "--width", "96", "--steps", "2", "--seed", "5", "--count", "3"]
    assert main([*words, "--json"]) == 1
    told = capsys.readouterr()
    said = json.loads(told.out)
    assert [Path(file).name for file in said["files"]] == ["zimage-5.png", "zimage-7.png"]
    assert (said["seeds"], len(said["seconds"]["pictures"]), len(said["parameters"])) == ([5, 7], 2, 2)
    sentence = "seed 6: the picture came out as NaN or infinity; what may have caused it: the step cache first_block"
    assert said["problems"] == [sentence]
    assert f"max-zimage: error: {sentence}\n" in told.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["zimage-5.png", "zimage-7.png"]


def test_info_names_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensor = "layers.2.attention.to_q.weight"
    model = planted_copy(tmp_path, "transformer", tensor, NAN, 70)
    assert main(["info", "--model", str(model), "--check-weights"]) == 1
    told = capsys.readouterr()
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    assert f"max-zimage: error: transformer: {tensor} in {file}: 1 NaN\n" in told.err
    assert "11,388,051 numbers of 363 tensors should be finite: not so in 1 tensor\n" in told.out
    assert main(["info", "--model", str(model), "--check-weights", "--json"]) == 1
    (damaged,) = json.loads(capsys.readouterr().out)["weights"]["damaged"]
    assert (damaged["component"], damaged["tensor"], damaged["nan"], damaged["used"]) == (
        "transformer",
        tensor,
        1,
        True,
    )
    assert main(["info", "--check-weights", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == {"tensors": 363, "numbers": 11_388_051, "damaged": []}


@pytest.mark.parametrize(
    ("value", "dtype", "asked", "expected"),
    [
        (float("inf"), torch.float32, "float32", {"positive_infinity": 1}),
        (float("-inf"), torch.float16, "float32", {"negative_infinity": 1}),
        (3.4e38, torch.float32, "float32", {"huge": 1}),
        (3.4e38, torch.float32, "bfloat16", {"overflowing": 1}),
        (3.39e38, torch.float32, "bfloat16", {"huge": 1}),
        (-1e17, torch.bfloat16, "bfloat16", {"huge": 1}),
        (1e15, torch.bfloat16, "bfloat16", {}),
    ],
    ids=str,
)
def test_what_counts_as_damage(
    value: float, dtype: torch.dtype, asked: str, expected: dict[str, int], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = planted_copy(tmp_path, "vae", "decoder.conv_in.bias", value, 3, dtype)
    code = main(["info", "--model", str(model), "--dtype", asked, "--check-weights", "--json"])
    damaged = json.loads(capsys.readouterr().out)["weights"]["damaged"]
    assert code == (1 if expected else 0)
    kinds = ("nan", "positive_infinity", "negative_infinity", "overflowing", "huge")
    assert [{kind: each[kind] for kind in kinds if each[kind]} for each in damaged] == ([expected] if expected else [])
