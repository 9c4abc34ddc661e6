"""Device graphs on an NVIDIA GPU; skipped without one. What can be tested without is in test_device_graphs.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from max.driver import Accelerator, accelerator_count

from max_zimage import ZImagePipeline
from max_zimage.compile import device_graphs
from max_zimage.compile.device_graphs import KEPT, DeviceGraphs
from max_zimage.progress import shown_by
from tests.pipeline.test_device_graphs_pictures import REQUESTS, latents
from tests.recording import RecordProperty
from tests.references.diffusers_runs import Pair
from tests.references.strict_model import Notes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        accelerator_count() == 0 or not device_graphs.possible(Accelerator()), reason="there is no NVIDIA GPU here"
    ),
]


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def drawn(request: pytest.FixtureRequest) -> Pair:
    ours = ZImagePipeline.from_pretrained(device="gpu", dtype=request.param)
    return cast(Pair, SimpleNamespace(ours=ours))


@contextmanager
def replayed(pair: Pair, patch: pytest.MonkeyPatch) -> Iterator[dict[str, DeviceGraphs]]:
    """Record from nothing, and fail if anything cannot be recorded or replayed."""
    notes = Notes()
    with patch.context() as patched, shown_by(notes):
        patched.setenv(device_graphs.VARIABLE, "on")
        graphs = {}
        for graph in (pair.ours.transformer.model, pair.ours.text_encoder.model):
            known = graph.device_graphs
            assert known is not None
            fresh = DeviceGraphs(graph.name, cast(Any, graph._model), known._device, known._on_host)
            patched.setattr(graph, "device_graphs", fresh)
            graphs[graph.name] = fresh
        yield graphs
        for each in graphs.values():
            each.give_up()
    assert notes.texts == []


def test_replayed_pictures_are_bit_by_bit_the_same(drawn: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of the same sizes with all else other among them: a recording must not keep anything of the first."""
    plain = {name: latents(drawn, **request) for name, request in REQUESTS.items()}
    with replayed(drawn, monkeypatch) as graphs:
        for _ in range(2):
            for name, request in REQUESTS.items():
                steps, pictures, computed = latents(drawn, **request)
                np.testing.assert_array_equal(steps, plain[name][0], name)
                np.testing.assert_array_equal(pictures, plain[name][1], name)
                np.testing.assert_array_equal(computed, plain[name][2], name)
        assert len(graphs["denoise"]) == KEPT
        assert len(graphs["text_encoder"]) > 0


def test_recorded_launches_are_those_of_a_run(drawn: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with replayed(drawn, monkeypatch) as graphs:
        latents(drawn, **REQUESTS["guidance ends"])
        latents(drawn, **REQUESTS["guidance ends"])
        assert (len(graphs["denoise"]), len(graphs["text_encoder"])) == (2, 1)
        for each in graphs.values():
            each.verify()
        again = latents(drawn, **REQUESTS["guidance ends"])
    plain = latents(drawn, **REQUESTS["guidance ends"])
    np.testing.assert_array_equal(again[0], plain[0])


def test_memory_of_recordings_is_given_back(
    drawn: Pair, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    """Of many sizes few are kept."""
    with replayed(drawn, monkeypatch) as graphs:
        for side in range(64, 64 + 16 * 3 * KEPT, 16):
            latents(drawn, height=side, width=256, num_inference_steps=40, guidance_scale=0.0)
        assert len(graphs["denoise"]) == KEPT
        held = drawn.ours.device.stats
    drawn.ours.device.synchronize()
    for name in ("graph_mem_used", "graph_mem_reserved"):
        record_property(f"{name} held", float(held[name]))
        record_property(f"{name} given back", float(drawn.ours.device.stats[name]))
    assert drawn.ours.device.stats["graph_mem_used"] <= held["graph_mem_used"]
