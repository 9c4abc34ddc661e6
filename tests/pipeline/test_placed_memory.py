"""Memory where components are apart or take turns: nothing is forgotten that the plain way counts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from max_zimage import ZImagePipeline
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.device.plans import HOST, STAGES, Plan, Wish
from max_zimage.images.tiles import Tiling
from max_zimage.pipeline import estimate, load_components, residency
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.placing import Size, needs_of, placed
from max_zimage.pipeline.residency import Residency
from max_zimage.request.request import GenerationRequest
from max_zimage.serving import capacity
from max_zimage.serving.capacity import check_capacity, with_capacity
from max_zimage.serving.settings import ServerLimits, ServerSettings

CARD = "gpu:0"
ON_CARD = dict.fromkeys(STAGES, CARD)


@pytest.fixture(scope="module")
def prepared() -> CheckedModel:
    return ZImagePipeline.prepare(device="cpu")


def asked(prepared: CheckedModel, side: int, **given: Any) -> GenerationRequest:
    sources = prepared.sources
    values = {"height": side, "width": side, "guidance_scale": 0.0, "seed": 1} | given
    return GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, prompt="x", **values)


def in_turns(prepared: CheckedModel) -> Residency:
    components: Any = {name: SimpleNamespace(is_here=False) for name in STAGES}
    return Residency(components, prepared.sources, Plan(devices=ON_CARD, residency="sequential"))


def parts(again: int, layers: int = 0) -> tuple[Any, Any]:
    """A text encoder and a transformer with so many bytes beside their weights."""
    return SimpleNamespace(layers=SimpleNamespace(nbytes=layers)), SimpleNamespace(again_bytes=again)


def test_copies_of_weights_are_counted(prepared: CheckedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of step caches and of hidden layers, which lie on an accelerator beside the weights."""
    request = asked(prepared, 64)
    needs = needs_of(prepared.sources, Size.of(request), False)
    transformer = needs["transformer"].weights + needs["transformer"].work + needs["vae"].weights
    monkeypatch.setattr(residency, "memory_of", lambda wish: {HOST: 2**40, CARD: transformer})
    in_turns(prepared).check(*parts(0), request)
    in_turns(prepared).check(*parts(0, layers=2**20), request)
    with pytest.raises(NotEnoughMemoryError, match="the model does not fit"):
        in_turns(prepared).check(*parts(1), request)
    with pytest.raises(NotEnoughMemoryError, match="the model does not fit"):
        in_turns(prepared).check(*parts(0, layers=2**30), request)


def test_what_exact_tiles_keep_on_the_host_is_counted(prepared: CheckedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "memory_of", lambda wish: {HOST: 2**40, CARD: 2**40})
    monkeypatch.setattr(estimate, "available_memory", lambda: 2**20)
    in_turns(prepared).check(*parts(0), asked(prepared, 1024, vae_tiling="blend"))
    with pytest.raises(NotEnoughMemoryError, match="exact tiles keep about"):
        in_turns(prepared).check(*parts(0), asked(prepared, 1024, vae_tiling="exact"))
    size = Size(height=1024, width=1024, branches=1, tiling=Tiling("exact"))
    with pytest.raises(NotEnoughMemoryError, match="exact tiles keep about"):
        placed(prepared.sources, Wish(devices=ON_CARD), size)


def test_weights_on_their_way_to_an_accelerator_fit_into_the_host(
    prepared: CheckedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(prepared.sources.nbytes.values())
    plan = Plan(devices=ON_CARD | {"text_encoder": HOST}, residency="resident")

    def load() -> None:
        where = cast(Any, dict(plan.devices))
        load_components.load_components({}, prepared.sources, plan, where, cast(Any, "session"), None)

    monkeypatch.setattr(load_components, "available_memory", lambda: largest)
    load()
    monkeypatch.setattr(load_components, "available_memory", lambda: largest - 1)
    with pytest.raises(NotEnoughMemoryError, match="the checkpoint's weights need"):
        load()


def test_a_server_looks_at_every_device(prepared: CheckedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServerSettings(name="x", limits=ServerLimits(pixels=1024 * 1024, images=4))
    devices = {"text_encoder": HOST, "transformer": CARD, "vae": HOST}
    wish = replace(prepared.wish, devices=devices)
    apart = replace(prepared, wish=wish, plan=Plan(devices=devices))
    memory = {HOST: 2**40, CARD: 2**40}
    monkeypatch.setattr(capacity, "memory_of", lambda wish: dict(memory))
    needed = check_capacity(settings, apart)
    memory[CARD] = needed
    assert check_capacity(settings, apart) == needed
    memory[CARD] = needed - 1
    with pytest.raises(NotEnoughMemoryError, match=r"are there on gpu:0; --max-pixels \d+ would fit"):
        check_capacity(settings, apart)
    memory |= {HOST: 2**27, CARD: 2**40}
    with pytest.raises(NotEnoughMemoryError, match=r"128 MiB are there on cpu; --max-pixels \d+ .*would fit"):
        check_capacity(settings, apart)


def test_a_server_has_as_many_blocks_stay_as_its_largest_request_allows(prepared: CheckedModel) -> None:
    """Its worker keeps to one plan, so the largest request decides; what fits with no block is refused."""
    settings = ServerSettings(name="x", limits=ServerLimits(pixels=160 * 160, images=1), batch_pictures=1)
    size = Size(height=160, width=160, branches=3)
    needs = needs_of(prepared.sources, size)
    streams = needs["transformer"].streams
    assert streams is not None
    work = max(needs["transformer"].work, needs["vae"].work)
    least = needs["vae"].weights + streams.there(0) + streams.passing + work

    def served(budget: int) -> CheckedModel:
        wish = replace(prepared.wish, placement="streamed", max_memory=budget)
        return with_capacity(settings, replace(prepared, wish=wish))

    found = served(least + 2 * streams.block)
    assert found.plan is not None
    assert (found.plan.residency, found.plan.stay, found.plan.decodes_alone) == ("streamed", 2, False)
    assert found.sources.limits.streams_blocks
    assert (served(least).plan or found.plan).stay == 0
    alone = served(least - 1).plan
    assert alone is not None
    assert alone.decodes_alone
    with pytest.raises(NotEnoughMemoryError, match="the model does not fit"):
        served(needs["vae"].weights + needs["vae"].work // 8)
