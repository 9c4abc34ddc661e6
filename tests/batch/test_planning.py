"""Rows to batches: what each row comes to does not depend on the others, and a bad one costs itself alone."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage.batch.planning import seed_of
from max_zimage.batch.work import Window
from max_zimage.request.request import GenerationRequest
from max_zimage.request.wire import of_text
from tests.batch.fakes import SMALL, job_of, write_lines


def planned(tmp_path: Path, rows: list[dict[str, Any]], **more: Any) -> Window:
    job = job_of(write_lines(tmp_path / "a.jsonl", rows), tmp_path / "out", window_rows=100, **more)
    ((number, found),) = job.source.windows(job.survey, 100)
    return job.planner.window(number, found)


def requests(window: Window) -> dict[tuple[str, int], GenerationRequest]:
    items = [item for unit in window.units for item in unit.items]
    return {(item.id, item.picture): of_text(item.request) for item in items if not item.sources}


def test_rows_of_equal_size_and_schedule_share_batches(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number}", "height": 64 + 16 * (number % 2)} for number in range(10)]
    rows[4] |= {"num_inference_steps": 3}
    window = planned(tmp_path, rows, batch_pictures=3)
    together = [[item.row for item in unit.items] for unit in window.units]
    assert together == [[0, 2, 6], [1, 3, 5], [4], [7, 9], [8]]
    assert len({unit.name for unit in window.units}) == 5
    assert planned(tmp_path, rows, batch_pictures=3) == window
    found = requests(window)
    assert {(each.height, each.width) for each in found.values()} == {(64, 64), (80, 64)}


def test_a_seed_comes_of_the_row_or_of_its_id_alone(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x", "seed": 7}]
    both = requests(planned(tmp_path, [*rows, {"id": "c", "prompt": "x", "num_images_per_prompt": 3, "seed": 9}]))
    alone = requests(planned(tmp_path, rows[:1]))
    assert both["a", 0].seed == alone["a", 0].seed == seed_of("a")
    assert both["b", 0].seed == 7
    assert [both["c", picture].seed for picture in range(3)] == [9, 10, 11]
    assert [both["c", picture].num_images for picture in range(3)] == [1, 1, 1]
    assert requests(planned(tmp_path, rows[:1], defaults={**SMALL, "seed": 5}))["a", 0].seed == 5


def test_what_a_row_says_comes_before_defaults(tmp_path: Path) -> None:
    defaults = {**SMALL, "negative_prompt": "blue", "guidance_scale": 3.0, "shift": 2.0}
    rows: list[dict[str, Any]] = [
        {"prompt": "x"},
        {"prompt": "y", "guidance_scale": 0.0, "negative_prompt": None, "shift": 4},
    ]
    rows += [{"prompt": "z", "sigmas": [0.9, 0.5, 0.2]}]
    found = requests(planned(tmp_path, rows, defaults=defaults))
    first, second, third = (found[str(number), 0] for number in range(3))
    assert (first.negative_prompts, first.guidance_scale, first.shift) == (("blue",), 3.0, 2.0)
    assert (second.guidance_scale, second.shift, second.uses_negative) == (0.0, 4.0, False)
    assert (third.num_inference_steps, third.sigmas) == (3, (0.9, 0.5, 0.2))


def test_a_bad_row_costs_itself_and_says_why(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "x", "height": 63},
        {"prompt": "good"},
        {"prompt": "x", "steps": 3},
        {"prompt": "x " * 2000},
        {"prompt": ["x", "y"]},
        {},
        {"prompt": "x", "image": str(tmp_path / "none.png")},
        {"prompt": "x", "image": 3},
        {"prompt": "x", "strength": 0.5},
        {"prompt": "x", "num_images_per_prompt": 0},
        {"prompt": "x", "loras": [{"name": "none.safetensors", "scale": 1.0}]},
    ]
    window = planned(tmp_path, rows)
    assert [item.row for unit in window.units for item in unit.items] == [1]
    said = {each["row"]: each["error"] for each in window.bad}
    beginnings = {
        0: "height must be a multiple of 16, got 63; the nearest are 48 and 64",
        2: "steps is no field of a request, the nearest is num_inference_steps; rename it, or leave it out",
        3: "the prompt has ",
        4: "prompt must be one text, got 2",
        5: "prompt is missing",
        6: f"image {tmp_path}/none.png cannot be read: No such file",
        7: "image must be a path, a URL or the bytes of a file, got int",
        8: "strength is given without an image, got 0.5",
        9: "num_images_per_prompt must be from 1 to ",
        10: "loras",
    }
    assert said.keys() == beginnings.keys()
    for row, begin in beginnings.items():
        assert said[row].startswith(begin), said[row]


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def test_pictures_come_as_files_urls_and_bytes(tmp_path: Path) -> None:
    content = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    (tmp_path / "in.png").write_bytes(content)
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    rows = [{"prompt": "x", "image": each, "strength": 0.5} for each in (str(tmp_path / "in.png"), url)]
    window = planned(tmp_path, [*rows, {"prompt": "x"}])
    assert window.bad == ()
    (unit, plain) = window.units
    assert [len(unit.items), len(plain.items)] == [2, 1]
    assert len({item.digests["image"] for item in unit.items}) == 1
    assert {json.loads(item.request)["strength"] for item in unit.items} == {0.5}
    defaults = {**SMALL, "image": str(tmp_path / "in.png"), "strength": 0.5}
    (unit,) = planned(tmp_path, [{"prompt": "x"}, {"prompt": "y"}], defaults=defaults).units
    assert [item.sources for item in unit.items] == [{"image": str(tmp_path / "in.png")}] * 2


def test_lines_of_openai_are_requests(tmp_path: Path) -> None:
    def line(id: str, **body: Any) -> dict[str, Any]:
        return {"custom_id": id, "method": "POST", "url": "/v1/images/generations", "body": body}

    rows = [line("a", prompt="x", size="80x64", n=2, seed=3), line("b", prompt="y", stream=True)]
    window = planned(tmp_path, rows, defaults={"num_inference_steps": 2})
    found = requests(window)
    assert [(each.height, each.width, each.seed) for each in found.values()] == [(64, 80, 3), (64, 80, 4)]
    assert [each.num_inference_steps for each in found.values()] == [2, 2]
    ((bad),) = window.bad
    assert bad["id"] == "b"
    assert bad["error"].startswith("stream: ")


def test_a_warning_is_noted_beside_the_picture(tmp_path: Path) -> None:
    (unit,) = planned(tmp_path, [{"prompt": "x", "negative_prompt": "y"}]).units
    assert unit.items[0].note.startswith("guidance_scale is 0: the negative prompt has no effect")


@pytest.mark.parametrize("size", [1, 5, 64])
def test_windows_do_not_depend_on_what_is_done(size: int, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"prompt": str(number)} for number in range(64)])
    job = job_of(file, tmp_path / "out", window_rows=size)
    whole = dict(job.source.windows(job.survey, size))
    left = dict(job.source.windows(job.survey, size, done=[0, 2]))
    assert left == {number: rows for number, rows in whole.items() if number not in (0, 2)}
