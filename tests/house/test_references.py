"""The page of references has every name that a request can have, and the page of reports names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.docs import sheets
from benchmarks.report import marked_parts
from max_zimage.request.dype_fields import DYPE_METHODS
from max_zimage.request.fields import ROWS
from max_zimage.request.guidance_fields import VARIANTS
from max_zimage.request.modes import LONG_PROMPT_MODES, REFUSE
from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES
from tests.paths import ROOT

ELSEWHERE = {
    "prompt": "tests/pipeline/test_parity_images.py, as all that follow",
    "negative_prompt": "the same",
    "height": "the same",
    "width": "the same",
    "num_inference_steps": "the same",
    "prompt_embeds": "the same",
    "negative_prompt_embeds": "the same",
    "output_type": "the same",
    "step_cache": "docs/step-caches.md",
    "sampler": "each of them has a row",
    "sigma_shape": "each of them has a row",
    "guidance_variant": "each of them has a row",
    "resize": "whether an image may be resized, which is an answer and no number",
}
"""Fields that the page need not have -> where they are compared, or why they are not."""
CHOICES = (
    *SAMPLERS,
    *SIGMA_SHAPES,
    *(name for name in VARIANTS if name != "cfg"),
    *DYPE_METHODS,
    *(name for name in LONG_PROMPT_MODES if name != REFUSE),
    *("blend", "exact", "lanczos", "bicubic", "torch"),
)
REPORT = re.compile(r"[\w.-]+/[\w.-]+#\d+")
HEADING = "# What each feature is compared with"
POINTS = 6
EACH = 5


def cells(page: str, heading: str) -> list[list[str]]:
    """Rows of the first table behind a line."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.search(re.escape(heading) + r"\n.*?\n\|[-|: ]+\|\n((?:\|[^\n]*\n)+)", text, re.DOTALL)
    assert found is not None, heading
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[1].splitlines()]


def first_cells() -> str:
    return "\n".join(row[0] for row in cells("references.md", HEADING))


@pytest.mark.parametrize("name", sorted({*CHOICES, *ROWS} - set(ELSEWHERE)))
def test_every_name_has_a_reference(name: str) -> None:
    assert f"`{name}`" in first_cells(), f"docs/references.md has no row for {name}"


def test_every_row_says_how_near_and_which_test_holds_it() -> None:
    named = ""
    for what, reference, difference, test in cells("references.md", HEADING):
        assert reference, what
        assert re.search(r"\d|equal", difference), f"{what}: no number"
        named = test if "the same" not in test else named + test
        files = re.findall(r"`(tests/[\w/]+\.py)`", named)
        assert files, what
        assert [file for file in files if not (ROOT / file).is_file()] == [], what


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_says_what_it_is_compared_with_and_what_is_a_bound(sampler: str) -> None:
    """Runs are compared with numpy, and of an update no difference is recorded."""
    (row,) = [row for row in cells("references.md", HEADING) if f"[`{sampler}`]" in row[0]]
    assert row[1].startswith("numpy")
    assert re.fullmatch(r"run \d\.\de-6, update within 1e-6", row[2])


def test_a_row_that_is_missing_is_missed() -> None:
    """Names are looked for as they are written, not as parts of others."""
    assert "`apg_eta`" in first_cells()
    assert "`apg_et`" not in first_cells()
    with pytest.raises(AssertionError, match="# None"):
        cells("references.md", "# None")


def test_what_each_costs_is_there() -> None:
    """As it was measured: that the table is its CSV file's, `python -m benchmarks.report --check` says."""
    rows = {row[1] for row in cells("references.md", "## What they cost in a step")}
    others = {"guidance_interval 0 to 0.5", "cfg_zero_star", "apg", "guidance_rescale", "slg", "nag_scale"}
    others |= {"nag_scale, nag_sigma_end 0.75", "dype", "progressive 0.5", "mask_image", "soft_mask", "Euler"}
    assert (set(SAMPLERS) - {"euler"} | others) - rows == set()
    assert marked_parts((ROOT / "docs" / "references.md").read_text(encoding="utf-8")) == ["additions"]


def test_pages_show_the_commands_of_their_pictures() -> None:
    for page in {sheet.page for sheet in sheets.SHEETS.values()}:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert sheets.rendered(text, page) == text, "run: python -m benchmarks.docs.pictures --words"
        for name, sheet in sheets.SHEETS.items():
            assert sheet.page != page or f"({name}.webp)" in text, f"docs/{page} does not show {name}"
    with pytest.raises(ValueError, match=r"docs/dype.md needs the lines '<!-- commands: dype -->'"):
        sheets.rendered("# Large pictures\n", "dype.md")


def test_every_picture_of_a_sheet_is_drawn() -> None:
    for name, sheet in sheets.SHEETS.items():
        drawn = re.findall(r"--output (\S+)", "\n".join(sheet.commands))
        assert len(set(drawn)) == len(sheet.commands), name
        assert set(sheet.files) <= {*drawn, sheets.MASK_FILE}, name
    assert sheets.script(['"a star" --seed 1', '"a ring" --seed 1']).count("max-zimage generate") == 2
    assert sheets.script(["x --seed 1", "x --seed 2"]).startswith(
        'draw() { max-zimage generate x "$@"; }\ndraw --seed 1'
    )


@pytest.mark.parametrize("point", range(1, POINTS + 1))
def test_reports_were_tried_and_are_held(point: int) -> None:
    text = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    (heading,) = re.findall(rf"^## {point}\. .*$", text, re.MULTILINE)
    reports = cells("reports.md", heading)
    assert len({row[0] for row in reports}) >= EACH
    for report, about, outcome, tests in reports:
        assert REPORT.search(report), report
        assert about, report
        assert outcome, report
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named, f"{report}: no test"
        for file, function in named:
            assert defined(ROOT / file, function), f"{report}: {file} has no {function}"


def defined(file: Path, function: str) -> bool:
    """Whether a file of tests has a test of that name."""
    return re.search(rf"^\s*def {function}\(", file.read_text(encoding="utf-8"), re.MULTILINE) is not None
