"""What requests do to pictures: all kinds are in the table, and a part is drawn beside the rows of the others."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.measure import RESULTS
from benchmarks.quality import __main__ as command
from benchmarks.quality import requests
from max_zimage.sampling.names import SAMPLERS

FILE = "quality-requests.csv"


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / FILE).open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_every_kind_of_request_has_a_part() -> None:
    parts = requests.PARTS
    assert set(parts["samplers"].ways) == set(SAMPLERS)
    assert set(parts["samplers"].steps) == {4, 8, 12, 20}
    fields = [way for part in parts.values() for way in part.ways.values()]
    for name in ("guidance_variant", "guidance_rescale", "guidance_interval", "slg", "progressive", "passes"):
        assert any(name in way for way in fields), name
    assert {way["vae_tiling"] for way in fields if "vae_tiling" in way} == {"blend", "exact"}
    attended = [(part, way) for part in parts.values() for way in part.ways.values() if "nag_scale" in way]
    assert {(part.guidance, tuple(part.steps)) for part, _ in attended} == {(0.0, (8, 20))}
    assert {"negative_prompt" in way for _, way in attended} == {False, True}


@pytest.mark.slow
def test_a_part_is_drawn_beside_the_rows_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `make quality ARGS=requests` does it, in as few steps as there are."""
    (tmp_path / FILE).write_bytes((RESULTS / FILE).read_bytes())
    name = "tiles, 128 pixels"
    ways = requests.PARTS[name].ways
    monkeypatch.setitem(requests.PARTS, name, requests.Part(ways, (2,), 2.0, leads_to=2))
    words = ["requests", "--only", name, "--prompts", "1", "--untimed", "--output", str(tmp_path)]
    assert command.main(words) == 0
    old, new = lines(RESULTS), lines(tmp_path)
    assert [line for line in new if not line["case"].startswith(name)] == [
        line for line in old if not line["case"].startswith(name)
    ]
    drawn = {line["variant"]: float(line["psnr_db"]) for line in new if line["case"] == f"{name}, 2 steps"}
    assert list(drawn) == list(ways)
    assert drawn["whole"] == float("inf")
    assert drawn["exact 64"] > 60 > drawn["blend 64 / 16"] > 10
    assert "| tiles, 128 pixels, 2 steps | exact 64 |" in capsys.readouterr().out
