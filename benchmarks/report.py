"""Tables and plots of the README and of docs/, from the CSV files that the benchmark leaves: `make report`.

    <!-- results: PART -->          everything between these two lines is written here,
    <!-- end -->                    from benchmarks/results/PART.csv

PART may also be one of `SUMMARIES`, a few rows of a part. `--check` compares and writes nothing. A table has the
columns that say something, and below it the conditions that its numbers were measured under. A plot carries the
fingerprint of its CSV file inside, so that an old one is found without drawing it again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.measure import RESULTS, ROOT
from benchmarks.report_tables import PLOTS, SUMMARIES, Line, section

FINGERPRINT = "Source"
"""Name of the PNG text chunk with the SHA-256 of the CSV file."""

_MARKED = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages and the plots, or say how they differ from the CSV files; 1 if they do."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where pages or plots are out of date")
    parser.add_argument("--pages", type=Path, nargs="+", metavar="FILE", help="default: README.md and those of docs/")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the CSV files are")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs", metavar="DIR", help="where the plots go")
    options = parser.parse_args(arguments)
    try:
        written = {page: page.read_text(encoding="utf-8") for page in options.pages or default_pages()}
        due = {page: rendered(text, options.results, options.plots, page) for page, text in written.items()}
        shown = [part for text in written.values() for part in marked_parts(text)]
        parts = [part for part in PLOTS if part in shown]
        old = [part for part in parts if _plotted(options.plots, part) != fingerprint(options.results, part)]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        problems = [f"{page}: tables differ from {options.results}" for page in due if due[page] != written[page]]
        problems += [f"{options.plots / part}.png is not of {options.results / part}.csv" for part in old]
        print("\n".join([*problems, "run: make report"] if problems else ["up to date"]))
        return 1 if problems else 0
    for page, text in due.items():
        page.write_text(text, encoding="utf-8")
    for part in old:
        from benchmarks import plots

        source = fingerprint(options.results, part)
        plots.draw(part, lines_of(options.results, part), options.plots / f"{part}.png", {FINGERPRINT: source})
    print(f"{len(shown)} tables in {len(due)} pages; plots drawn: {', '.join(old) or 'none, up to date'}")
    return 0


def default_pages() -> list[Path]:
    """The README and every page of docs/ that has markers."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    return [ROOT / "README.md", *(page for page in pages if marked_parts(page.read_text(encoding="utf-8")))]


def rendered(text: str, results: Path, plots: Path, page: Path) -> str:
    """A page's text with everything between markers made anew.

    Raises:
        ValueError: If a part has no CSV file, or a marker has no end.
    """
    if text.count("<!-- results: ") != len(_MARKED.findall(text)):
        raise ValueError("each '<!-- results: PART -->' needs an '<!-- end -->' behind it, both on lines of their own")
    here = page.resolve().parent
    to_results, to_plots = (os.path.relpath(folder.resolve(), here) for folder in (results, plots))

    def anew(found: re.Match[str]) -> str:
        part = SUMMARIES[found[2]].part if found[2] in SUMMARIES else found[2]
        made = section(found[2], lines_of(results, part), results=to_results, plots=to_plots)
        return f"{found[1]}{made}{found[4]}"

    return _MARKED.sub(anew, text)


def marked_parts(text: str) -> list[str]:
    """Names between markers, in order."""
    return [found[1] for found in _MARKED.findall(text)]


def lines_of(results: Path, part: str) -> list[Line]:
    """Of a part's CSV file.

    Raises:
        ValueError: If there is none, or nothing in it.
    """
    file = results / f"{part}.csv"
    if not file.exists():
        raise ValueError(f'no {file}; measure it: make bench ARGS="{part}"')
    with file.open(newline="", encoding="utf-8") as opened:
        lines = list(csv.DictReader(opened))
    if not lines:
        raise ValueError(f'{file} holds no results; measure them: make bench ARGS="{part}"')
    return lines


def fingerprint(results: Path, part: str) -> str:
    """SHA-256 of a part's CSV file."""
    return hashlib.sha256((results / f"{part}.csv").read_bytes()).hexdigest()


def _plotted(folder: Path, part: str) -> str | None:
    """The fingerprint inside a plot; None if there is none."""
    file = folder / f"{part}.png"
    if not file.exists():
        return None
    with Image.open(file) as plot:
        return plot.info.get(FINGERPRINT)


if __name__ == "__main__":
    raise SystemExit(main())
