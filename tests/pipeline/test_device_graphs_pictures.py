"""Pictures of the embedded model whose graphs are recorded and replayed, as far as that can be without a GPU.

The graphs run on the CPU; `tests.references.strict_model` stands between as MAX's device graphs would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from max.driver import CPU, Buffer

from max_zimage.compile import device_graphs
from max_zimage.compile.compiler import CompiledGraph
from max_zimage.compile.device_graphs import KEPT, DeviceGraphs
from max_zimage.compile.observer import observed_by
from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import download
from max_zimage.request.request import GenerationRequest
from tests.references.diffusers_runs import FloatArray, Pair
from tests.references.engine_runs import inputs_of
from tests.references.strict_model import StrictModel
from tests.serving.test_step_scheduler import Worker

pytestmark = pytest.mark.usefixtures("device_graphs_on")


@contextmanager
def recorded(pair: Pair, patch: pytest.MonkeyPatch) -> Iterator[dict[str, StrictModel]]:
    """Let the graphs of a pipeline be recorded; yields what stands between, by the graph's name."""
    models = {}
    with patch.context() as patched:
        for graph in (pair.ours.transformer.model, pair.ours.text_encoder.model):
            assert graph.device_graphs is None  # on a CPU
            assert graph._model is not None
            count = len(graph._model.input_metadata)
            models[graph.name] = StrictModel(graph._model, [False] * count)
            standing_in = DeviceGraphs(graph.name, models[graph.name], CPU(), [False] * count)
            patched.setattr(graph, "device_graphs", standing_in)
        yield models


def latents(pair: Pair, **arguments: Any) -> tuple[list[FloatArray], FloatArray, Any]:
    """After every step, at the end, and the steps that were computed; read only when all is done."""
    sources, ours = pair.ours.sources, pair.ours
    asked = {"prompt": "a red star", "seed": 3, "height": 64, "width": 64} | arguments
    request = GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **asked)
    seen: list[Buffer] = []
    output = ours.execute(inputs_of(ours, request), "np", lambda index, timestep, each: seen.append(each))
    return [download(each).copy() for each in seen], output.images, output.computed


REQUESTS: dict[str, dict[str, Any]] = {
    "guidance ends": {"guidance_scale": 3.0, "cfg_truncation": 0.2, "num_inference_steps": 8},
    "the same sizes, all else other": {
        "prompt": "a blue ring", "seed": 4, "guidance_scale": 2.0, "cfg_truncation": 0.12, "num_inference_steps": 8,
        "cfg_normalization": 1.0,
    },
    "another size": {"height": 80, "width": 112, "num_inference_steps": 4, "guidance_scale": 2.0},
    "two pictures of unequal captions": {
        "prompt": ["a red star", "a small green ring on a black background " * 4], "num_inference_steps": 4,
        "guidance_scale": 2.0,
    },
    "one step": {"num_inference_steps": 1, "guidance_scale": 0.0},
    "extrapolated": {
        "num_inference_steps": 12, "guidance_scale": 2.0, "cfg_truncation": 0.3,
        "step_cache": "taylorseer:cache_interval=3,warmup_steps=2,max_order=2",
    },
    "left out": {
        "num_inference_steps": 8, "guidance_scale": 2.0, "step_cache": "first_block:threshold=0.1,block=noise_refiner",
    },
}  # fmt: skip


def test_pictures_are_bit_by_bit_the_same(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request after the other, twice, so that the second time around all is replayed."""
    plain = {name: latents(embedded, **request) for name, request in REQUESTS.items()}
    with recorded(embedded, monkeypatch) as models:
        for _ in range(2):
            for name, request in REQUESTS.items():
                steps, pictures, computed = latents(embedded, **request)
                for step, (one, other) in enumerate(zip(steps, plain[name][0], strict=True)):
                    np.testing.assert_array_equal(one, other, f"{name}, step {step}")
                np.testing.assert_array_equal(pictures, plain[name][1], name)
                np.testing.assert_array_equal(computed, plain[name][2], name)
    assert models["denoise"].calls["replay"] > 50
    assert models["text_encoder"].calls["replay"] > 4
    assert all(len(model.recorded) <= KEPT for model in models.values())


def test_guidance_that_ends_has_two_recordings(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(embedded, monkeypatch) as models:
        latents(embedded, **REQUESTS["guidance ends"])
    assert models["denoise"].calls == {"execute": 4, "capture": 2, "replay": 6}


def test_a_batch_that_loses_a_request(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the server has them: one that goes on alone, behind it others of the first sizes."""

    def serve() -> list[list[np.ndarray]]:
        worker = Worker(embedded.ours)
        drawn = []
        for _ in range(2):
            kept, dropped = (worker.ask(prompt, steps=6, num_images=2) for prompt in ("a red star", "a blue circle"))
            for _ in range(4):
                worker.turn()
            worker.cancels.put([dropped.request_id])
            worker.finish()
            assert worker.is_cancelled(dropped)
            drawn.append(worker.pictures(kept))
        return drawn

    plain = serve()
    with recorded(embedded, monkeypatch) as models:
        replayed = serve()
    np.testing.assert_array_equal(replayed, plain)
    assert len(models["denoise"].recorded) == 2


def test_calls_are_still_observed(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    class Watching:
        def call(self, name: str, inputs: Any, run: Callable[[], list[Buffer]]) -> list[Buffer]:
            names.append(name)
            return run()

    with recorded(embedded, monkeypatch) as models, observed_by(Watching()):
        latents(embedded, num_inference_steps=5, guidance_scale=0.0)
    assert names.count("denoise") == 5
    assert models["denoise"].calls["replay"] == 4


def test_off_replays_nothing(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(embedded, monkeypatch) as models:
        monkeypatch.setenv(device_graphs.VARIABLE, "off")
        latents(embedded, num_inference_steps=5, guidance_scale=0.0)
        assert not any(model.calls for model in models.values())
        monkeypatch.setenv(device_graphs.VARIABLE, "on")
        latents(embedded, num_inference_steps=5, guidance_scale=0.0)
        assert models["denoise"].calls["replay"] == 4


def test_a_failing_call_gets_the_memory_of_recordings(
    embedded: Pair, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, tried = embedded.ours.vae.model, 0
    original = cast(Any, decode._model).execute

    def execute(*inputs: Buffer) -> list[Buffer]:
        nonlocal tried
        tried += 1
        if len(cast(DeviceGraphs, embedded.ours.transformer.model.device_graphs)):
            raise RuntimeError("out of memory")
        return list(original(*inputs))

    plain = latents(embedded, num_inference_steps=5, guidance_scale=0.0)[1]
    with recorded(embedded, monkeypatch) as models:
        monkeypatch.setattr(decode, "_model", SimpleNamespace(execute=execute))
        first, second = (latents(embedded, num_inference_steps=5, guidance_scale=0.0)[1] for _ in range(2))
    np.testing.assert_array_equal([first, second], [plain, plain])
    assert (tried, models["denoise"].recorded, len(notes)) == (3, {}, 1)
    assert "out of memory" in notes[0]


def test_only_what_pays_is_replayed(embedded: Pair) -> None:
    """The first block's answer is read on the host: it must not be recorded. Taylor's graphs launch next to nothing."""
    made: dict[str, bool] = {}

    class Watching(ZImageTransformerModel):
        def graph(self, name: str, weights: Any = None) -> CompiledGraph:
            defined = super().graph(name, weights)
            made[name] = defined.pending is not None and defined.pending.replayed
            return defined

    transformer = embedded.ours.transformer
    watched = Watching(
        transformer.config, transformer.encoding, [transformer.device], transformer.weights, session=transformer.session
    )
    for name in ("noise_refiner", "layers"):
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch:
            patch.setattr("max_zimage.components.transformer.wait_for", lambda graphs: None)
            watched.first_block_graphs(cast(Any, name))
            watched.taylor_graphs  # noqa: B018
    assert {name for name, replayed in made.items() if replayed} == {"denoise"}
    assert len(made) == 8
