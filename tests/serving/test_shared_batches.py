"""Requests that share a batch and differ in what does not keep them apart: each gets its own picture."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.references.diffusers_runs import Pair
from tests.serving.test_step_scheduler import Worker, alone, assert_same


@pytest.fixture
def worker(embedded: Pair) -> Worker:
    return Worker(embedded.ours)


def test_a_long_prompt_shares_its_batch_with_a_short_one(worker: Worker, embedded: Pair) -> None:
    long = "a picture" + " of a red star on a blue background" * 210
    first, second = worker.ask(long, long_prompt_mode="interpolate"), worker.ask("a blue ring", seed=6)
    worker.finish()
    assert [worker.steps(each)[0][1] for each in (first, second)] == [2, 2]
    assert_same(worker.pictures(first), alone(embedded.ours, long, long_prompt_mode="interpolate"))
    assert_same(worker.pictures(second), alone(embedded.ours, "a blue ring", 6))


def test_seed_variance_belongs_to_each_picture(worker: Worker, embedded: Pair) -> None:
    first = worker.ask("a red star", seed=5, num_images=2, seed_variance="0.5")
    second = worker.ask("a red star", seed=9)
    worker.finish()
    assert worker.steps(second)[0][1] == 3
    assert_same(worker.pictures(first)[1:], alone(embedded.ours, "a red star", 6, seed_variance=0.5))
    assert_same(worker.pictures(second), alone(embedded.ours, "a red star", 9))


def test_a_negative_prompt_inside_attention_belongs_to_each_picture(worker: Worker, embedded: Pair) -> None:
    """Captions of unequal length; and what differs in strength does not share steps."""
    asked: Any = {"guidance_scale": 0.0, "nag_scale": "6"}
    long = "red" + " and red" * 40
    first = worker.ask("a red star on a blue background", negative_prompt=long, **asked)
    second = worker.ask("a blue ring", seed=6, num_images=2, negative_prompt="blue", **asked)
    third = worker.ask("a blue ring", seed=6, negative_prompt="blue", guidance_scale=0.0, nag_scale="7")
    worker.finish()
    assert [worker.steps(each)[0][1] for each in (first, second, third)] == [3, 3, 1]
    given: Any = {"guidance_scale": 0.0, "nag_scale": 6.0}
    assert_same(
        worker.pictures(first),
        alone(embedded.ours, "a red star on a blue background", negative_prompt=long, **given),
    )
    ring = partial(alone, embedded.ours, "a blue ring", negative_prompt="blue")
    assert_same(worker.pictures(second), [*ring(6, **given), *ring(7, **given)])
    assert_same(worker.pictures(third), ring(6, guidance_scale=0.0, nag_scale=7.0))


def test_noise_is_scaled_by_each_request(worker: Worker, embedded: Pair) -> None:
    """A shape that begins below 1 scales what is drawn, and not what an image is mixed with."""
    image = np.random.default_rng(4).integers(0, 256, (128, 128, 3), np.uint8)
    shape: Any = {"sigma_shape": "ddim_uniform"}
    first = worker.ask("a red star", steps=8, **shape)
    second = worker.ask("a red star", steps=8, image=image, strength=1.0, **shape)
    worker.finish()
    assert worker.steps(second)[0][1] == 2
    eight: Any = {"num_inference_steps": 8, **shape}
    assert_same(worker.pictures(first), alone(embedded.ours, "a red star", **eight))
    assert_same(worker.pictures(second), alone(embedded.ours, "a red star", image=image, strength=1.0, **eight))


def test_extrapolated_positions_are_shared_by_requests_that_ask_for_the_same(worker: Worker, embedded: Pair) -> None:
    asked: dict[str, Any] = {"dype": "vision_yarn", "dype_base_resolution": "64"}
    first, second = worker.ask("a red star", **asked), worker.ask("a large blue ring on green", seed=6, **asked)
    others = [worker.ask("a"), worker.ask("b", dype="ntk", dype_base_resolution="64")]
    worker.finish()
    assert [worker.steps(each)[0][1] for each in (first, second, *others)] == [2, 2, 1, 1]
    asked["dype_base_resolution"] = 64
    assert_same(worker.pictures(first), alone(embedded.ours, "a red star", **asked))
    assert_same(worker.pictures(second), alone(embedded.ours, "a large blue ring on green", 6, **asked))


def test_requests_with_unlike_samplers_do_not_share_steps(worker: Worker) -> None:
    of_four = partial(worker.ask, steps=4)
    asked = [of_four("a", sampler="lcm"), of_four("b", sampler="euler_stochastic"), of_four("c")]
    asked += [of_four("d", sigma_shape="karras"), of_four("e", sigma_shape="simple")]
    worker.finish()
    # Simple has the very levels of linear.
    assert [worker.steps(each)[0][1] for each in asked] == [1, 1, 2, 1, 2]


def test_requests_with_masks_share_steps_and_keep_their_own(worker: Worker, embedded: Pair) -> None:
    image = np.random.default_rng(4).integers(0, 256, (128, 128, 3), np.uint8)
    masks = [np.zeros((128, 128), np.uint8) for _ in range(2)]
    masks[0][:64], masks[1][:, 64:] = 255, 255
    asked = [
        worker.ask("a red star", image=image, mask_image=masks[0], composite="true"),
        worker.ask("a blue ring", seed=6, image=image[::-1], mask_image=masks[1], strength=1.0),
        worker.ask("a red star", seed=7, image=image, strength=1.0),
    ]
    worker.finish()
    assert [worker.steps(each)[0][1] for each in asked] == [2, 2, 1]
    pasted = alone(embedded.ours, "a red star", image=image, mask_image=masks[0], composite=True)
    assert_same(worker.pictures(asked[0]), pasted)
    np.testing.assert_array_equal(worker.pictures(asked[0])[0][64:], image[64:])
    flipped = alone(embedded.ours, "a blue ring", 6, image=np.ascontiguousarray(image[::-1]), mask_image=masks[1])
    assert_same(worker.pictures(asked[1]), flipped)


def test_requests_share_a_batch_with_those_of_their_hidden_layer(worker: Worker, embedded: Pair) -> None:
    asked = [worker.ask(text, hidden_layer=layer) for text, layer in (("a", "-3"), ("b", "-2"), ("c", "2"), ("d", "3"))]
    worker.finish()
    # Of four layers the hidden states are five, and 2 is -3.
    assert [worker.steps(each)[0][1] for each in asked] == [2, 2, 2, 2]
    assert_same(worker.pictures(asked[0]), alone(embedded.ours, "a", hidden_layer=-3))
    assert_same(worker.pictures(asked[1]), alone(embedded.ours, "b"))
