"""The text for other tools by itself: what it says of two passes, and texts that were made to be slow to read."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from max_zimage.images.infotext import read_infotext, write_infotext
from max_zimage.sampling.other_names import cfg_scale_of, guidance_of
from max_zimage.serving.http.a1111_info import info
from tests.images.test_texts import PLAIN

SLOW = [
    "x" * 200_000,
    "x," * 100_000,
    ",a:[" * 50_000,
    ",a:{" * 50_000,
    ',a:"' * 50_000,
    ',a:"\\' * 40_000,
    " " * 200_000,
]


def values_of(**changed: Any) -> dict[str, Any]:
    return dict(json.loads(PLAIN.to_json())) | changed


@pytest.mark.parametrize("letters", SLOW, ids=lambda text: text[:4])
@pytest.mark.parametrize("width", [1000, 60_000, 200_000])
def test_long_lines_are_read_at_once(letters: str, width: int) -> None:
    """In one line, and in many: a server reads what anybody sends."""
    lines = [letters[begin : begin + width] for begin in range(0, len(letters), width)]
    begin = time.thread_time()
    read_infotext("\n".join([*lines, "Steps: 4, Sampler: Euler, Seed: 1", *lines]))
    assert time.thread_time() - begin < 1


def test_a_pair_begins_where_one_may() -> None:
    line = 'Steps: 4, no pair, "x" y: 1, Model: "a, b: c", Res: [{"a": 1}, 2], Of: {"b": 3, "c": 4}, Seed: 1, '
    line += 'Half: "\\ud800"'
    found = read_infotext(f"a star\n{line}")
    assert found is not None
    assert found.pairs == {
        "Steps": "4", "Model": "a, b: c", "Res": '[{"a": 1}, 2]', "Of": '{"b": 3, "c": 4}', "Seed": "1",
        "Half": '"\\ud800"',
    }  # fmt: skip
    found.pairs["Half"].encode()


def test_a_line_that_is_too_long_is_none() -> None:
    assert read_infotext("a star\nSteps: 4, Sampler: Euler, Seed: 1, X: " + "x" * 70_000) is None


def test_two_passes_are_said_as_other_tools_have_them() -> None:
    passes = {"passes": "0.5x9,1.0x7:0.4:shift=2.0", "upscale": "bicubic", "width": 192, "height": 128}
    values = values_of(num_inference_steps=20, **passes)
    found = read_infotext(write_infotext(values))
    assert found is not None
    expected = {
        "Steps": "9", "Size": "96x64", "Hires upscale": "2", "Hires steps": "7", "Hires upscaler": "Latent (bicubic)",
        "Denoising strength": "0.4",
    }  # fmt: skip
    assert expected.items() <= dict(found.pairs).items()
    told = json.loads(info([values], {}))
    assert (told["steps"], told["denoising_strength"]) == (9, 0.4)
    assert told["extra_generation_params"]["Hires upscale"] == "2"
    uneven = read_infotext(write_infotext(values | {"width": 208}))
    assert uneven is not None
    assert (uneven.pairs["Size"], uneven.pairs["Hires resize"]) == ("96x64", "208x128")


@pytest.mark.parametrize("passes", ["0.25x4,0.5x4:0.5,1.0x4:0.5", "0.01x4,1.0x4:0.5", "0.5x4,0.75x4:0.5"])
def test_other_passes_have_no_name_there(passes: str) -> None:
    found = read_infotext(write_infotext(values_of(passes=passes, num_inference_steps=20)))
    assert found is not None
    assert found.pairs["Steps"] == "4"
    assert not any(name.startswith("Hires") for name in found.pairs)


def test_a_variation_seed_of_0_is_one() -> None:
    found = read_infotext(write_infotext(values_of(variation_seed=0, variation_strength=0.5)))
    assert found is not None
    assert (found.pairs["Variation seed"], found.pairs["Variation seed strength"]) == ("0", "0.5")


def test_scales_of_guidance_lead_back() -> None:
    assert (guidance_of(2.3), guidance_of(1), cfg_scale_of([0.0, 1.3]), cfg_scale_of(0)) == (1.3, 0.0, 2.3, 1.0)
    scales = [tenth / 10 for tenth in range(10, 300)]
    assert [cfg_scale_of(guidance_of(each)) for each in scales] == scales
