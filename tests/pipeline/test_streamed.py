"""Streamed blocks: the pictures of the resident run to the bit, within a budget, and what is refused beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from max.driver import CPU, Buffer

from max_zimage import FirstBlockCache, ZImagePipeline
from max_zimage.compile import modules
from max_zimage.components.streamed import ZImageStreamedTransformer, spread
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.device.offload import PLACES, Blocks, QueuedCopies, nbytes_of
from max_zimage.errors import RequestError
from max_zimage.pipeline.placing import Size, needs_of
from tests.pipeline.test_residency import BLUE, CALL, RED, draw
from tests.references.diffusers_runs import Pair
from tests.references.loras import STYLE, TEXT, write_adapter
from tests.serving.test_step_scheduler import Worker, alone, assert_same

STAY = 1


def budget_for(pipeline: ZImagePipeline, stay: int, size: Size) -> int:
    """The least memory with which so many blocks stay, from the table of what components take."""
    needs = needs_of(pipeline.sources, size)
    streams = needs["transformer"].streams
    assert streams is not None
    there = streams.around + (stay + PLACES) * streams.block + streams.passing
    return needs["vae"].weights + there + max(needs["transformer"].work, needs["vae"].work)


@pytest.fixture(scope="module")
def budget(embedded: Pair) -> int:
    return budget_for(embedded.ours, STAY, Size(height=128, width=128, branches=2))


@pytest.fixture(scope="module")
def streamed(budget: int) -> ZImagePipeline:
    found = ZImagePipeline.from_pretrained(device="cpu", dtype="float32", placement="streamed", max_memory=budget)
    assert isinstance(found.transformer, ZImageStreamedTransformer)
    return found


def transformer_of(pipeline: ZImagePipeline) -> ZImageStreamedTransformer:
    assert isinstance(pipeline.transformer, ZImageStreamedTransformer)
    return pipeline.transformer


def blocks_of(pipeline: ZImagePipeline) -> Blocks:
    blocks = transformer_of(pipeline).blocks
    assert blocks is not None
    return blocks


def test_pictures_are_those_of_the_resident_run_to_the_bit(streamed: ZImagePipeline, embedded: Pair) -> None:
    """Guided and not, of several sizes, several at a time, with captions of unequal length, and with an image."""
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    given: tuple[dict[str, Any], ...] = (
        {},
        {"guidance_scale": 0.0, "height": 64, "width": 96},
        {"num_images_per_prompt": 2, "height": 64, "width": 64},
        {"guidance_scale": 3.0, "slg_scale": 2.0, "slg_layers": (2, 3), "slg_start": 0.0, "slg_stop": 1.0, "width": 64},
        {"step_cache": "taylorseer:cache_interval=2,warmup_steps=2", "num_inference_steps": 6},
        {"image": image, "strength": 0.6, "sampler": "heun"},
    )
    for number, each in enumerate(given):
        np.testing.assert_array_equal(draw(streamed, RED, **each), draw(embedded.ours, RED, **each), str(number))
    prompts = [RED, "a long prompt about a blue circle that stands before a red star on a green ground " * 3]
    several: dict[str, Any] = {**CALL, "height": 64, "width": 64, "output_type": "latent"}
    np.testing.assert_array_equal(streamed(prompts, **several), embedded.ours(prompts, **several))


def test_the_budget_is_kept(streamed: ZImagePipeline, budget: int, embedded: Pair) -> None:
    """By the plan, by the ledgers, and by the buffers that there are."""
    draw(streamed, RED)
    plan, components = streamed.residency.plan, streamed.sources.nbytes
    assert (plan.residency, plan.stay) == ("streamed", STAY)
    assert plan.peaks["cpu"] == budget < sum(components.values())
    assert "5 of the transformer's 6 blocks are streamed" in plan.why
    blocks, needs = blocks_of(streamed), needs_of(streamed.sources, Size(height=128, width=128, branches=2))
    around = nbytes_of(list(streamed.transformer.kept_weights.values()))
    streams = needs["transformer"].streams
    assert streams is not None
    assert around <= streams.around
    most = max(event.nbytes for event in blocks.ledger)
    assert most == (STAY + PLACES) * streams.block
    work = max(needs["transformer"].work, needs["vae"].work)
    assert components["vae"] + around + most + streams.passing + work <= budget
    held = [event.nbytes for event in streamed.residency.ledger]
    assert max(held) + work <= budget
    # One byte less, and one block fewer stays.
    less = ZImagePipeline.prepare(device="cpu", dtype="float32", placement="streamed", max_memory=budget - 1)
    pipeline = ZImagePipeline.from_prepared(less)
    assert pipeline.residency.plan.stay == STAY - 1
    np.testing.assert_array_equal(draw(pipeline, RED), draw(embedded.ours, RED))


def test_the_order_of_blocks_and_what_runs_beside_what(streamed: ZImagePipeline) -> None:
    draw(streamed, RED, num_inference_steps=3)
    transformer = transformer_of(streamed)
    transformer.leave()
    begun = len(streamed.residency.ledger)
    draw(streamed, RED, num_inference_steps=3)
    count, order = transformer.spec.num_layers, sorted(spread(transformer.spec.num_layers, STAY))
    assert len(order) == count - STAY
    events = [(event.kind, event.block) for event in blocks_of(streamed).ledger]
    expected = [("asked", order[0])]
    for _ in range(3):  # of the last one of an evaluation, the first one of the next comes beside it
        for block, behind in zip(order, [*order[1:], order[0]], strict=True):
            expected += [("asked", behind), ("used", block)]
    assert events == expected
    assert [(event.component, event.is_here) for event in streamed.residency.ledger[begun:]] == [("transformer", True)]


def test_a_larger_picture_has_fewer_blocks_stay(streamed: ZImagePipeline, embedded: Pair, budget: int) -> None:
    """Within the same budget; and what does not fit even so is refused, with what would."""
    larger: dict[str, Any] = {"height": 144, "width": 144}
    needs = needs_of(streamed.sources, Size(**larger, branches=2))
    assert budget_for(streamed, STAY, Size(**larger, branches=2)) > budget
    np.testing.assert_array_equal(draw(streamed, RED, **larger), draw(embedded.ours, RED, **larger))
    assert streamed.residency.plan.stay == 0
    assert max(event.nbytes for event in blocks_of(streamed).ledger) == PLACES * needs["transformer"].streams.block  # type: ignore[union-attr]
    with pytest.raises(NotEnoughMemoryError, match=r"the model does not fit \(placement streamed\): cpu has "):
        draw(streamed, RED, height=512, width=512)
    draw(streamed, RED)
    assert streamed.residency.plan.stay == STAY


def test_components_take_turns_and_nothing_is_compiled_for_it(streamed: ZImagePipeline, embedded: Pair) -> None:
    draw(streamed, BLUE)
    before = modules.counts["misses"], modules.counts["hits"]
    np.testing.assert_array_equal(draw(streamed, "a new prompt"), draw(embedded.ours, "a new prompt"))
    assert (modules.counts["misses"], modules.counts["hits"]) == before
    assert (streamed.text_encoder.is_here, streamed.transformer.is_here) == (False, True)
    streamed.text_encoder.come()
    assert transformer_of(streamed).blocks is None
    assert not streamed.transformer.kept_weights


def test_adapters_are_added_to_blocks_as_they_come(streamed: ZImagePipeline, embedded: Pair, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "style.safetensors", STYLE, TEXT)
    given: dict[str, Any] = {"loras": [(adapter.path, 0.7)]}
    try:
        np.testing.assert_array_equal(draw(streamed, RED, **given), draw(embedded.ours, RED, **given))
    finally:
        without = draw(embedded.ours, RED)
    np.testing.assert_array_equal(draw(streamed, RED), without)


def test_requests_of_a_server_share_a_pass(streamed: ZImagePipeline, embedded: Pair) -> None:
    worker = Worker(streamed)
    asked = [worker.ask("a red square", seed=5), worker.ask("a green ring", seed=6)]
    worker.finish()
    for each, (prompt, seed) in zip(asked, [("a red square", 5), ("a green ring", 6)], strict=True):
        assert_same(worker.pictures(each), alone(embedded.ours, prompt, seed))


@pytest.fixture
def queued(streamed: ZImagePipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[ZImageStreamedTransformer]:
    """The same with blocks that are copied from the host's memory, as to an accelerator, by a queue of the CPU."""
    transformer = transformer_of(streamed)
    transformer.leave()

    class Settled(QueuedCopies):
        """On a CPU a queue copies later, and does not order what runs on the others."""

        def take(self) -> list[Buffer]:
            self._queue.synchronize()
            return super().take()

    def made() -> Blocks:
        count = transformer.spec.num_layers
        there = {layer: transformer._read(layer) for layer in range(count)}
        waiting = {layer: there[layer] for layer in spread(count, STAY)}
        stay = {layer: weights for layer, weights in there.items() if layer not in waiting}
        return Blocks(count, stay, Settled(waiting, CPU()))

    monkeypatch.setattr(transformer, "_made_blocks", made)
    yield transformer
    transformer.leave()


def test_blocks_that_a_queue_copies_into_places_again_and_again(
    queued: ZImageStreamedTransformer, streamed: ZImagePipeline, embedded: Pair
) -> None:
    np.testing.assert_array_equal(draw(streamed, RED), draw(embedded.ours, RED))
    blocks = queued.blocks
    assert blocks is not None
    assert isinstance(blocks._copies, QueuedCopies)
    assert len({id(each) for place in blocks._copies._places for each in place}) == 2 * len(blocks._stay[5])
    assert {event.nbytes for event in blocks.ledger} == {(STAY + PLACES) * nbytes_of(blocks._stay[5])}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"step_cache": "first_block"},
            r"step_cache first_block:.* and streamed blocks do not go together: .*taylorseer",
        ),
        ({"guidance_scale": 0.0, "nag_scale": 3.0, "negative_prompt": "x"}, "nag_scale cannot go with streamed blocks"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(
    streamed: ZImagePipeline, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was computed")

    monkeypatch.setattr(ZImageStreamedTransformer, "come", called)
    with pytest.raises(RequestError, match=message):
        draw(streamed, RED, **given)


def test_a_step_cache_that_cannot_go_with_it_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(RequestError, match="and streamed blocks do not go together; take taylorseer, or another"):
        ZImagePipeline.prepare(device="cpu", placement="streamed", step_cache=FirstBlockCache())


def test_auto_streams_where_nothing_else_fits(embedded: Pair, budget: int) -> None:
    prepared = ZImagePipeline.prepare(device="cpu", dtype="float32", max_memory=budget)
    found = ZImagePipeline.from_prepared(prepared).residency.plan
    assert (found.residency, found.stay) == ("streamed", STAY)
    # First-block caching has all blocks in one graph.
    cached = ZImagePipeline.prepare(device="cpu", dtype="float32", max_memory=budget, step_cache="first_block")
    needs = needs_of(cached.sources, Size.usual(cached.sources))
    assert needs["transformer"].streams is None
    assert embedded.ours.residency.plan.residency == "resident"


def test_streamed_blocks_are_spread() -> None:
    assert [sorted(spread(6, stay)) for stay in (0, 1, 3, 6)] == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4], [0, 2, 4], []]
    for count in range(1, 31):
        for stay in range(count + 1):
            assert len(spread(count, stay)) == count - stay
