"""What came of sixteen requests once comes of them again: to the bit on a recorded processor, nearly elsewhere.

Which of the two a run did stands in its summary, as `bits compared`. `tests.references.recorded` says how they are
recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from max_zimage import ZImagePipeline
from tests.references import recorded
from tests.references.diffusers_runs import Pair, relative_l2
from tests.references.recorded import REQUESTS, draw, recorded_digests, recorded_latents
from tests.references.recorded import __main__ as recording
from tests.tolerances import RECORDED_L2


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_drawn_as_it_was(
    name: str, embedded: Pair, record_property: Callable[[str, object], None]
) -> None:
    drawn = draw(embedded.ours, name)
    distance = relative_l2(drawn.latents, recorded_latents(name))
    digests = recorded.digests_here(name)
    record_property("bits compared", int(digests is not None))
    record_property("latents_l2", distance)
    if digests is not None:
        assert drawn.digests == digests, f"latents are {distance:.2g} (relative L2) from those recorded"
    assert drawn.latents.shape == recorded_latents(name).shape
    assert distance <= RECORDED_L2


def test_a_single_bit_is_seen(embedded: Pair) -> None:
    drawn = draw(embedded.ours, "one step")
    other = drawn.latents.copy()
    other.view(np.uint32)[0, 0, 0, 0] ^= 1
    changed = drawn._replace(latents=other)
    assert changed.digests["latents"] != drawn.digests["latents"]
    assert changed.digests["pixels"] == drawn.digests["pixels"]


def test_requests_differ() -> None:
    """Each says something that no other says."""
    for entry in recorded_digests():
        assert set(entry["digests"]) == set(REQUESTS)
        assert len({digests["latents"] for digests in entry["digests"].values()}) == len(REQUESTS)


def test_recording(
    embedded: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anew, for another processor, and not where the latents are others."""
    monkeypatch.setattr(recorded, "REQUESTS", {"one step": REQUESTS["one step"]})
    monkeypatch.setattr(recorded, "DIGESTS", tmp_path / "digests.json")
    monkeypatch.setattr(recorded, "LATENTS", tmp_path / "latents.npz")
    monkeypatch.setattr(ZImagePipeline, "from_pretrained", lambda **_: embedded.ours)
    assert recording.main([]) == 0
    drawn = draw(embedded.ours, "one step")
    assert recorded.digests_here("one step") == drawn.digests
    np.testing.assert_array_equal(recorded_latents("one step"), drawn.latents)

    here = recorded.processor()
    monkeypatch.setattr(recorded, "processor", lambda: here | {"name": "another"})
    assert recorded.digests_here("one step") is None
    assert recording.main([]) == 0
    assert [entry["processor"]["name"] for entry in recorded_digests()] == [here["name"], "another"]
    assert recorded.digests_here("one step") == drawn.digests

    before = recorded.DIGESTS.read_text()
    monkeypatch.setitem(recorded.REQUESTS, "one step", REQUESTS["one step"] | {"seed": 41})
    assert recording.main([]) == 1
    assert "not recorded: further than" in capsys.readouterr().err
    assert recorded.DIGESTS.read_text() == before
    assert recording.main(["--anew"]) == 0
    assert [entry["processor"]["name"] for entry in recorded_digests()] == ["another"]
    assert relative_l2(recorded_latents("one step"), drawn.latents) > 0.1
