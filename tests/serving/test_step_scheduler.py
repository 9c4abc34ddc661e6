"""The worker's scheduler on the embedded model: who shares a batch, what is told, what a cancellation stops."""

from __future__ import annotations

import base64
import io
import queue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from max.pipelines.context.outputs import GenerationOutput
from max.pipelines.modeling.types import RequestID
from max.serve.scheduler.base import SchedulerProgress
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.pipeline.context import ZImageContext
from max_zimage.request.fields import ROWS
from max_zimage.serving.worker import step_scheduler as scheduler_module
from max_zimage.serving.worker.messages import read_progress
from max_zimage.serving.worker.previews import preview_steps
from max_zimage.serving.worker.step_scheduler import StepScheduler
from tests.references.diffusers_runs import Pair
from tests.serving.test_context_tokenizer import context


def data_url(image: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(image).save(data, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


_NAMED = tuple(name for name, row in ROWS.items() if row.responses and row.responses.place == "metadata")


class Worker:
    """A scheduler with queues that a test fills and reads."""

    def __init__(self, pipeline: ZImagePipeline, max_pictures: int = 4, *, mix_loras: bool = False) -> None:
        self.requests: queue.Queue[Any] = queue.Queue()
        self.answers: queue.Queue[dict[RequestID, Any]] = queue.Queue()
        self.cancels: queue.Queue[list[RequestID]] = queue.Queue()
        self.told: dict[RequestID, list[Any]] = {}
        self.scheduler: StepScheduler[Any, Any, Any] = StepScheduler(
            pipeline=SimpleNamespace(_pipeline_model=pipeline, max_pictures=max_pictures, mix_loras=mix_loras),
            batch_constructor=None,
            request_queue=self.requests,
            response_queue=self.answers,
            cancel_queue=self.cancels,
        )

    def ask(self, prompt: Any, **options: Any) -> ZImageContext:
        defaults: dict[str, Any] = {"width": 128, "height": 128, "steps": 3, "guidance_scale": 2.0}
        defaults |= {"output_format": "png", "seed": 5}
        named = {name: options.pop(name, None) for name in _NAMED}
        if (mask := options.pop("mask_image", None)) is not None:
            named["mask_image"] = data_url(mask)
        named = {name: value for name, value in named.items() if value is not None}
        options |= {"metadata": named} if named else {}
        if (image := options.pop("image", None)) is not None:
            content = [{"type": "input_text", "text": prompt}, {"type": "input_image", "image_url": data_url(image)}]
            prompt = [{"role": "user", "content": content}]
        made = context(prompt, **defaults | options)
        assert isinstance(made, ZImageContext)
        made.reports = made.listens = True
        self.requests.put(made)
        return made

    def turn(self) -> SchedulerProgress:
        self.scheduler._last_work = 0.0  # no naps
        progress = self.scheduler.run_iteration()
        while not self.answers.empty():
            for request, result in self.answers.get().items():
                self.told.setdefault(request, []).append(result)
        return progress

    def finish(self) -> None:
        for _ in range(200):
            if self.turn() is SchedulerProgress.NO_PROGRESS:
                return
        raise AssertionError("the scheduler does not come to rest")

    def steps(self, asked: ZImageContext) -> list[tuple[int, int]]:
        """Step and pictures in the batch, of each report."""
        messages = [read_progress(result.result)[0] for result in self.told[asked.request_id] if not result.is_done]
        return [(message.step, message.batch) for message in messages]

    def pictures(self, asked: ZImageContext) -> list[np.ndarray]:
        final: GenerationOutput = self.told[asked.request_id][-1].result
        assert final.is_done
        files = [base64.b64decode(getattr(content, "image_data", "")) for content in final.output]
        return [np.asarray(Image.open(io.BytesIO(file))) for file in files]

    def is_cancelled(self, asked: ZImageContext) -> bool:
        last = self.told[asked.request_id][-1]
        return bool(last.is_done and last.result is None)


@pytest.fixture
def worker(embedded: Pair) -> Worker:
    return Worker(embedded.ours)


def alone(pipeline: ZImagePipeline, prompt: str, seed: int = 5, **arguments: Any) -> list[np.ndarray]:
    size = {"height": 128, "width": 128, "num_inference_steps": 3, "guidance_scale": 2.0}
    return list(np.asarray(pipeline(prompt, seed=seed, output_type="np", **size | arguments)))


def assert_same(ours: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """The same but for the rounding of other shapes in a batch."""
    assert len(ours) == len(expected)
    for picture, other in zip(ours, expected, strict=True):
        assert np.mean(np.abs(picture.astype(int) - other) <= 1) > 0.999


def test_one_request_is_told_of_by_steps_and_answered(worker: Worker, embedded: Pair) -> None:
    asked = worker.ask("a red star", num_images=2)
    worker.finish()
    assert worker.steps(asked) == [(0, 2), (1, 2), (2, 2), (3, 2)]
    for picture, expected in zip(
        worker.pictures(asked), alone(embedded.ours, "a red star", num_images_per_prompt=2), strict=True
    ):
        np.testing.assert_array_equal(picture, expected)
    progress, _ = read_progress(worker.told[asked.request_id][-2].result)
    assert set(progress.seconds) == {"captions", "steps", "decode"}
    assert all(seconds > 0 for seconds in progress.seconds.values())
    assert worker.turn() is SchedulerProgress.NO_PROGRESS


def test_requests_that_fit_share_steps_and_others_wait(worker: Worker, embedded: Pair) -> None:
    first = worker.ask("a red star")
    other_size = worker.ask("a blue circle", width=144)
    other_guidance = worker.ask("a blue circle", guidance_scale=3.0)
    second = worker.ask("a small green ring on a black background", num_images=2, seed=9, negative_prompt="blurry")
    worker.finish()
    for asked, pictures in [(first, 3), (second, 3), (other_size, 1), (other_guidance, 1)]:
        assert {batch for _, batch in worker.steps(asked)} == {pictures}
    assert_same(worker.pictures(first), alone(embedded.ours, "a red star"))
    expected = alone(
        embedded.ours,
        "a small green ring on a black background",
        9,
        num_images_per_prompt=2,
        negative_prompt="blurry",
    )
    assert_same(worker.pictures(second), expected)
    assert_same(worker.pictures(other_size), alone(embedded.ours, "a blue circle", width=144))


def test_contexts_that_do_not_say_what_they_share_go_alone(worker: Worker) -> None:
    first, second = worker.ask("a"), worker.ask("b")
    first.sharing = second.sharing = ""
    worker.finish()
    assert [{batch for _, batch in worker.steps(asked)} for asked in (first, second)] == [{1}, {1}]


def test_a_batch_has_a_limit_of_pictures_which_one_request_may_exceed(embedded: Pair) -> None:
    worker = Worker(embedded.ours, max_pictures=2)
    large, second, third = worker.ask("a", num_images=3), worker.ask("b"), worker.ask("c")
    fourth = worker.ask("d")
    worker.finish()
    sizes = {asked.request_id: worker.steps(asked)[0][1] for asked in (large, second, third, fourth)}
    assert list(sizes.values()) == [3, 2, 2, 1]


def test_a_cancelled_request_that_waits_is_never_begun(worker: Worker) -> None:
    first, second = worker.ask("a red star"), worker.ask("a blue ring", steps=2)
    worker.turn()
    worker.cancels.put([second.request_id])
    worker.finish()
    assert worker.is_cancelled(second)
    assert len(worker.told[second.request_id]) == 1
    assert not worker.is_cancelled(first)


def test_a_cancelled_request_that_runs_ends_within_a_step(worker: Worker) -> None:
    asked = worker.ask("a red star", steps=50)
    for _ in range(4):
        worker.turn()
    worker.cancels.put([asked.request_id])
    worker.turn()
    assert worker.is_cancelled(asked)
    assert [step for step, _ in worker.steps(asked)] == [0, 1, 2, 3]
    assert worker.turn() is SchedulerProgress.NO_PROGRESS


@pytest.mark.parametrize("sampler", ["euler", "unipc", "dpmpp_sde"])
def test_the_others_of_a_batch_go_on_where_they_were(worker: Worker, embedded: Pair, sampler: str) -> None:
    """With what their sampler remembers, and the noise of their own seeds."""
    one, leaves = worker.ask("a red star", sampler=sampler), worker.ask("a blue ring on white", seed=6, sampler=sampler)
    two = worker.ask("a green square", seed=7, num_images=2, sampler=sampler)
    for _ in range(3):
        worker.turn()
    worker.cancels.put([leaves.request_id])
    worker.finish()
    assert worker.is_cancelled(leaves)
    assert worker.steps(one) == [(0, 4), (1, 4), (2, 4), (3, 3)]
    assert_same(worker.pictures(one), alone(embedded.ours, "a red star", sampler=sampler))
    both = alone(embedded.ours, "a green square", 7, num_images_per_prompt=2, sampler=sampler)
    assert_same(worker.pictures(two), both)


@pytest.mark.parametrize(
    "cache", ["first_block:threshold=0.2", "taylorseer:cache_interval=3,warmup_steps=2,max_order=2"]
)
def test_the_others_of_a_batch_keep_what_their_step_cache_knows(worker: Worker, embedded: Pair, cache: str) -> None:
    """The first request is cancelled when steps have been computed, and before others are left out."""
    first, second = (worker.ask("a red star", steps=12, seed=seed, step_cache=cache) for seed in (8, 9))
    for _ in range(7):
        worker.turn()
    assert worker.steps(second)[-1] == (6, 2)
    worker.cancels.put([first.request_id])
    worker.finish()
    assert worker.is_cancelled(first)
    assert worker.steps(second)[-1] == (12, 1)
    expected = alone(embedded.ours, "a red star", seed=9, num_inference_steps=12, step_cache=cache)
    assert_same(worker.pictures(second), expected)
    fresh = alone(embedded.ours, "a red star", seed=9, num_inference_steps=12)
    assert np.mean(np.abs(worker.pictures(second)[0].astype(int) - fresh[0]) <= 1) < 0.99


def test_requests_with_unlike_step_caches_do_not_share_steps(worker: Worker) -> None:
    first = worker.ask("a red star", step_cache="first_block:threshold=0.2")
    others = [worker.ask("a red star", **more) for more in ({}, {"step_cache": "first_block:threshold=0.1"})]
    worker.finish()
    assert [worker.steps(asked)[-1] for asked in (first, *others)] == [(3, 1)] * 3


def test_a_failure_is_logged_once_and_the_next_request_is_served(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = worker.ask("a red star")
    with monkeypatch.context() as patch:
        patch.setattr(scheduler_module, "RunningBatch", lambda *_: 1 / 0)
        worker.finish()
    assert worker.is_cancelled(broken)
    assert caplog.text.count("ZeroDivisionError") == 1
    assert str(broken.request_id) in caplog.text
    after = worker.ask("a red star")
    worker.finish()
    assert len(worker.pictures(after)) == 1


def test_steps_with_previews() -> None:
    assert preview_steps(8, 0) == ()
    assert preview_steps(8, 3) == (2, 4, 6)
    assert preview_steps(3, 3) == (1, 2)
    assert preview_steps(1, 2) == ()
    assert preview_steps(50, 1) == (25,)


def test_a_preview_is_a_small_picture_of_what_is_coming(
    worker: Worker, embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "_STILL", 1e9)  # on a busy machine more steps are told, without previews
    asked = worker.ask("a red star on a blue background", steps=8, num_images=2)
    asked.reports, asked.previews = False, 3
    worker.finish()
    messages = [read_progress(result.result) for result in worker.told[asked.request_id] if not result.is_done]
    assert [progress.step for progress, _ in messages] == [0, 2, 4, 6, 8]
    finals = worker.pictures(asked)
    for progress, previews in messages[1:-1]:
        assert [preview.picture for preview in previews] == [0, 1]
        for preview, final in zip(previews, finals, strict=True):
            small = np.asarray(Image.open(io.BytesIO(preview.png)), float)
            assert small.shape == (16, 16, 3)
            pooled = final.reshape(16, 8, 16, 8, 3).mean((1, 3))
            # The first estimate is a blur; the last one is nearly the picture.
            likeness = np.corrcoef(small.ravel(), pooled.ravel())[0, 1]
            assert likeness > (0.6 if progress.step == 2 else 0.8), f"{likeness:.2f} after step {progress.step}"
