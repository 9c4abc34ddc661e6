"""Tables and plots of the README and docs/: made from CSV files, the same when made again, and the committed ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from benchmarks import measure, plots, quality_table, report
from benchmarks.resolutions import FULL
from tests.benchmarks.test_bench import conditions, row


def write(folder: Path, part: str, rows: list[measure.Row]) -> Path:
    measure.write_csv(folder / f"{part}.csv", rows, conditions())
    return folder / f"{part}.csv"


def block_rows() -> list[measure.Row]:
    return [
        replace(
            row(variant, [factor * 1e-3 * FULL.at(side).tokens], reference=factor == 2),
            case=f"block {side}x{side}",
            sizes=FULL.at(side).sizes,
        )
        for side in FULL.calls
        for variant, factor in (("diffusers", 2), ("ours", 1))
    ]


def test_a_table_says_what_was_measured_and_under_which_conditions(tmp_path: Path) -> None:
    rows = [row("slow", [2.0, 2.0, 2.0], reference=True), row("a|b", [0.5, 0.5, 0.5], psnr_db=float("inf"))]
    rows.append(replace(rows[0], variant="broken", timing=None, reference=False, note="does not run"))
    write(tmp_path, "block", rows)
    said = report.section("block", report.lines_of(tmp_path, "block"))
    assert said.splitlines()[1:6] == [
        "| case |  | seconds | 20 to 80 % | speed | PSNR, dB | note |",
        "| --- | --- | ---: | --- | ---: | ---: | --- |",
        "| case | slow | 2.00 | 2 to 2 | 1.00x |  |  |",
        "|  | a\\|b | 0.500 | 0.5 to 0.5 | 4.00x | inf |  |",
        "|  | broken |  |  |  |  | does not run |",
    ]
    for word in (
        "a cpu",
        "2 cores",
        "MAX 26.7.0",
        "PyTorch 2.13.0",
        "float32",
        "1x1",
        "n = 3 calls",
        "abc1234",
        "2026",
    ):
        assert word in said
    assert "driver" not in said


def test_calls_are_a_column_where_they_differ_and_a_common_note_stands_below(tmp_path: Path) -> None:
    rows = [replace(row("a", [1.0]), note="peak"), replace(row("b", [1.0, 1.0]), note="peak")]
    write(tmp_path, "block", rows)
    said = report.section("block", report.lines_of(tmp_path, "block"))
    assert "| n |" in said
    assert "n = 1 to 2 calls" in said
    assert "note" not in said
    assert "<sub>peak. " in said


def test_a_file_of_fewer_columns_is_rendered_too(tmp_path: Path) -> None:
    file = write(tmp_path, "block", [row("slow", [2.0], reference=True)])
    header, line = file.read_text().splitlines()
    kept = [index for index, name in enumerate(header.split(",")) if name not in ("gpu", "driver", "psnr_db")]
    file.write_text("\n".join(",".join(text.split(",")[index] for index in kept) for text in (header, line)) + "\n")
    assert "| case | slow | 2.00 | 1.00x |" in report.section("block", report.lines_of(tmp_path, "block"))


def test_only_some_cases_of_a_large_part_are_shown(tmp_path: Path) -> None:
    rows = [replace(row("ours", [1.0]), case=case) for case in ("prompt to picture, small", "VAE, small")]
    write(tmp_path, "end_to_end", rows)
    said = report.section("end_to_end", report.lines_of(tmp_path, "end_to_end"))
    assert "prompt to picture, small" in said
    assert "VAE" not in said


def test_a_readme_is_written_once_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "resolutions", block_rows())
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: resolutions -->\nold\n<!-- end -->\nbehind\n")
    arguments = ["--pages", str(readme), "--results", str(tmp_path), "--plots", str(tmp_path / "docs")]
    assert report.main([*arguments, "--check"]) == 1
    assert "make report" in capsys.readouterr().out
    assert "old" in readme.read_text()

    assert report.main(arguments) == 0
    written = readme.read_text()
    assert written.startswith("before\n<!-- results: resolutions -->\n")
    assert written.endswith("<!-- end -->\nbehind\n")
    assert "| block 1024x1024 | diffusers | 8.32 | 1.00x |" in written
    assert "old" not in written
    plot = tmp_path / "docs" / "resolutions.png"
    with Image.open(plot) as image:
        assert image.info["Source"] == report.fingerprint(tmp_path, "resolutions")
        assert image.width > 300
    assert plot.stat().st_size < 100_000
    assert report.main([*arguments, "--check"]) == 0
    before = plot.stat().st_mtime_ns
    assert report.main(arguments) == 0
    assert (readme.read_text(), plot.stat().st_mtime_ns) == (written, before)

    file.write_text(file.read_text().replace("8.32", "8.33"))
    assert report.main([*arguments, "--check"]) == 1
    said = capsys.readouterr().out
    assert "tables differ" in said
    assert "resolutions.png is not of" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- results: nosuch -->\n<!-- end -->\n", 'make bench ARGS="nosuch"'),
        ("<!-- results: block -->\nno end\n", "needs an '<!-- end -->'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(text)
    assert report.main(["--pages", str(tmp_path / "README.md"), "--results", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == text


def test_plots_read_tokens_and_draw_every_row(tmp_path: Path) -> None:
    write(tmp_path, "resolutions", block_rows())
    lines = report.lines_of(tmp_path, "resolutions")
    assert [plots.tokens_of(line) for line in lines[::2]] == [320, 1088, 2368, 4160]
    (axes,) = plots.resolutions(lines).axes
    assert len(axes.lines) == 3 * 2  # measured, fit and linear part of two engines
    tokens, seconds = map(np.asarray, axes.lines[3].get_data())
    assert list(tokens) == [320, 1088, 2368, 4160]
    assert list(seconds) == pytest.approx([n / 1000 for n in tokens])


def quality_lines() -> list[report.Line]:
    return [
        {
            "case": f"{steps} steps, guidance 4{engine}",
            "variant": variant.replace("WARMUP", str(warmup)),
            "skipped": "0.394",
            "speedup": "1.256",
            "psnr_db": "inf" if variant == "uncached" else "47.6",
            "ssim": "0.99761",
            "all_right": "0.875",
        }
        for steps, warmup in ((20, 4), (50, 9))
        for engine, named in (("", quality_table.ROWS), (", diffusers", quality_table.PEERS))
        for variant in named.values()
    ]


def test_the_table_of_step_caches_has_both_numbers_of_steps_abreast() -> None:
    heading, rule, *rows = quality_table.table(quality_lines()).splitlines()
    assert heading.count("|") == rule.count("|") == 10
    assert {row.count("|") for row in rows} == {10}
    assert rows[0] == "| none" + " | 39 % | 1.26x | equal | 88 %" * 2 + " |"
    assert rows[1] == "| first_block 0.04" + " | 39 % | 1.26x | 48 / 0.998 | 88 %" * 2 + " |"
    assert len(rows) == len(quality_table.ROWS) + len(quality_table.PEERS)


def test_a_setting_that_was_not_measured_is_named() -> None:
    with pytest.raises(ValueError, match=r'"cache-dit .*=9\)" under "50 steps, .*diffusers".*make quality'):
        quality_table.table(quality_lines()[:-1])


def test_the_waterfalls_plot_has_a_bar_for_each_row_of_the_common_scenes(tmp_path: Path) -> None:
    names = ("diffusers", "ours", "cached")
    rows = [
        replace(row(name, [2.0 - i]), case=f"waterfall {case}") for case in "ab" for i, name in enumerate(names[:2])
    ]
    rows += [replace(row("diffusers", [5.0]), case="waterfall c"), replace(row("broken", [1.0]), case="x", timing=None)]
    write(tmp_path, "waterfall", rows)
    first, second = plots.waterfall(report.lines_of(tmp_path, "waterfall")).axes
    for axes in (first, second):
        assert [cast(Rectangle, bar).get_width() for bar in axes.patches] == [2.0, 1.0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["diffusers", "ours"]


def test_the_readme_and_the_pages_show_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check"]) == 0, capsys.readouterr()
    shown = {page: report.marked_parts(page.read_text(encoding="utf-8")) for page in report.default_pages()}
    # Those of the text model stand in its card, and of its pictures in the page of enhancers.
    apart = {"gpu", "embedded_model_gpu", "text_model", "enhanced"}
    parts = {path.stem for path in measure.RESULTS.glob("*.csv")} - apart
    results = shown.pop(measure.ROOT / "docs" / "results.md")
    elsewhere = {part for page in shown.values() for part in page}
    assert sorted(results) == sorted(parts - elsewhere)
    assert shown[measure.ROOT / "README.md"] == ["summary"]
    assert {"step_cache_choices"} <= {part for page in shown.values() for part in page}


def test_a_summary_has_the_rows_it_names_and_links_from_where_it_stands(tmp_path: Path) -> None:
    summary = report.SUMMARIES["summary"]
    rows = [replace(row(name, [2.0]), case=summary.case) for name in reversed(summary.rows)]
    rows.append(replace(row("another", [2.0]), case=summary.case))
    write(tmp_path / "results", "end_to_end", rows)
    page = tmp_path / "docs" / "page.md"
    text = "<!-- results: summary -->\n<!-- end -->\n"
    said = report.rendered(text, tmp_path / "results", tmp_path / "docs", page)
    assert [line.split(" | ")[0] for line in said.splitlines()[4 : 4 + len(rows)]] == [
        *(f"| {name}" for name in summary.rows),
        "",
    ]
    assert len(summary.rows) <= 6
    assert "[all columns](../results/end_to_end.csv)" in said
    write(tmp_path / "results", "end_to_end", rows[1:])
    with pytest.raises(ValueError, match="taylorseer"):
        report.rendered(text, tmp_path / "results", tmp_path / "docs", page)
