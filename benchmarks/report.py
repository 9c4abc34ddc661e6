"""The README's tables and plots, from the CSV files that the benchmark leaves: `make report`, or `--check` them.

    <!-- results: PART -->          everything between these two lines is written here,
    <!-- end -->                    from benchmarks/results/PART.csv

A table has the columns that say something, and below it the conditions that its numbers were measured under. A plot
carries the fingerprint of its CSV file inside, so that an old one is found without drawing it again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks import quality_table
from benchmarks.measure import RESULT_COLUMNS, RESULTS, ROOT

Line = dict[str, str]
"""Of a CSV file, by column."""

PLOTS: Mapping[str, str] = {
    "resolutions": "seconds of a block over tokens, with the fit's linear and quadratic parts",
    "waterfall": "seconds of a picture, one optimisation more in each row",
}
"""Parts with a plot -> what it shows."""
SHOWN: Mapping[str, tuple[str, ...]] = {"end_to_end": ("prompt to picture", "torch.compile", "MAX's built-in pipeline")}
"""Parts of which the README shows only some cases -> how these begin."""
COMMANDS: Mapping[str, str] = {
    "quality": "make quality",
    "embedded_model": 'make embedded-model ARGS="evaluate max_zimage/assets/tiny-zimage"',
}
"""How parts are measured that are not `make bench`'s."""
FINGERPRINT = "Source"
"""Name of the PNG text chunk with the SHA-256 of the CSV file."""

_MARKED = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        title: Its heading.
        text: A CSV file's line to a cell; empty where there is nothing to say.
    """

    title: str
    text: Callable[[Line], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the README and the plots, or say how they differ from the CSV files; 1 if they do."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where README or plots are out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the CSV files are")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs", metavar="DIR", help="where the plots go")
    options = parser.parse_args(arguments)
    try:
        written = options.readme.read_text(encoding="utf-8")
        due = rendered(written, options.results)
        parts = [part for part in PLOTS if part in marked_parts(written)]
        old = [part for part in parts if _plotted(options.plots, part) != fingerprint(options.results, part)]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        problems = [f"{options.readme}: tables differ from {options.results}"] if due != written else []
        problems += [f"{options.plots / part}.png is not of {options.results / part}.csv" for part in old]
        print("\n".join([*problems, "run: make report"] if problems else ["up to date"]))
        return 1 if problems else 0
    options.readme.write_text(due, encoding="utf-8")
    for part in old:
        from benchmarks import plots

        source = fingerprint(options.results, part)
        plots.draw(part, lines_of(options.results, part), options.plots / f"{part}.png", {FINGERPRINT: source})
    print(f"{options.readme}: {len(marked_parts(written))} tables; plots drawn: {', '.join(old) or 'none, up to date'}")
    return 0


def rendered(text: str, results: Path) -> str:
    """A text with everything between markers made anew.

    Raises:
        ValueError: If a part has no CSV file, or a marker has no end.
    """
    if text.count("<!-- results: ") != len(_MARKED.findall(text)):
        raise ValueError("each '<!-- results: PART -->' needs an '<!-- end -->' behind it, both on lines of their own")
    return _MARKED.sub(lambda found: f"{found[1]}{section(found[2], lines_of(results, found[2]))}{found[4]}", text)


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


def section(part: str, lines: Sequence[Line]) -> str:
    """What stands between the markers of a part."""
    if part == "quality":
        return f"\n{quality_table.table(lines)}\n\n{conditions(part, lines)}\n\n"
    shown = [line for line in lines if line["case"].startswith(SHOWN.get(part, ("",)))]
    plot = f"\n![{PLOTS[part]}](docs/{part}.png)\n" if part in PLOTS else ""
    return f"\n{table(shown)}\n\n{conditions(part, shown)}\n{plot}\n"


def table(lines: Sequence[Line]) -> str:
    """Markdown: a row for each measurement, its case where it changes, no column that is empty throughout."""
    columns = [column for column in _columns(lines) if any(map(column.text, lines))]
    columns = columns[:-1] if _same_note(lines) else columns
    rows = [[column.text(line) for column in columns] for line in lines]
    numeric = [all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    cases = [line["case"] for line in lines]
    for row, case, previous in zip(rows, cases, ["", *cases], strict=False):
        row[0] = "" if case == previous else row[0]
    heading = [column.title for column in columns]
    rule = ["---:" if number else "---" for number in numeric]
    return "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in (heading, rule, *rows))


def _columns(lines: Sequence[Line]) -> list[Column]:
    """Those of every table, what a file has beyond them, and the number of calls where it is not always the same."""
    others = [name for name in RESULT_COLUMNS if name not in _USUAL and any(line.get(name) for line in lines)]
    calls = [Column(title="n", text=_value("n"))] if len(_calls(lines)) > 1 else []
    *columns, note = COLUMNS
    return [*columns, *(Column(title=name.replace("_", " "), text=_value(name)) for name in others), *calls, note]


def _same_note(lines: Sequence[Line]) -> str:
    """What all rows have to say, which then stands below the table."""
    notes = {line["note"] for line in lines}
    return notes.pop() if len(notes) == 1 else ""


def _calls(lines: Sequence[Line]) -> list[int]:
    return sorted({int(line["n"]) for line in lines if line.get("n")})


def conditions(part: str, lines: Sequence[Line]) -> str:
    """What the numbers of a table depend on; older files lack some of it."""

    def once(column: str) -> str:
        return ", ".join(dict.fromkeys(line[column] for line in lines if line.get(column)))

    counts = _calls(lines)
    calls = f"{counts[0]} to {counts[-1]}" if counts[1:] else "".join(map(str, counts))
    sizes = once("sizes")
    named = (
        (once("cpu"), "{}"),
        (once("cores"), "{} cores"),
        (once("gpu"), "{}"),
        (once("driver"), "driver {}"),
        (once("max"), "MAX {}"),
        (once("torch"), "PyTorch {}"),
        (once("diffusers"), "diffusers {}"),
        (once("python"), "Python {}"),
        (once("dtype"), "{}"),
        (sizes if len({line["sizes"] for line in lines}) == 1 else "", "{}"),
        (calls, "medians of n = {} calls"),
        (once("load_before"), "load {} before"),
        (once("commit"), "commit {}"),
        (once("date"), "{}"),
    )
    said = ", ".join(words.format(value) for value, words in named if value)
    note = f"{_same_note(lines)}. " if _same_note(lines) else ""
    command = COMMANDS.get(part, f"make bench ARGS={part}")
    return f"<sub>{note}`{command}`: {said}; [all columns](benchmarks/results/{part}.csv)</sub>"


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


def _is_number(cell: str) -> bool:
    return not cell or _NUMBER.fullmatch(cell.rstrip("x%*").removesuffix(" ")) is not None


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _value(name: str, words: str = "{}") -> Callable[[Line], str]:
    return lambda line: words.format(line[name]) if line.get(name) else ""


def _share(name: str) -> Callable[[Line], str]:
    return lambda line: f"{float(line[name]):.0%}" if line.get(name) else ""


def _rounded(name: str, digits: int, words: str = "{}") -> Callable[[Line], str]:
    """A number with so many digits that count."""

    def text(line: Line) -> str:
        value = float(line.get(name) or "nan")
        if value != value:
            return ""
        return words.format(f"{value:#.{digits}g}".rstrip(".") if 0 < abs(value) < 10**digits else f"{value:.0f}")

    return text


COLUMNS = (
    Column(title="case", text=_value("case")),
    Column(title="", text=_value("variant")),
    Column(title="seconds", text=_rounded("median_s", 3)),
    Column(title="20 to 80 %", text=lambda line: _spread(line)),
    Column(title="speed", text=_rounded("speedup", 3, "{}x")),
    Column(title="compiling, s", text=_rounded("compile_s", 3)),
    Column(title="GFLOP/s", text=_rounded("gflop_per_s", 3)),
    Column(title="of the roof", text=_share("roof_share")),
    Column(title="MiB", text=_rounded("peak_mib", 4)),
    Column(title="PSNR, dB", text=_rounded("psnr_db", 3)),
    Column(title="max abs", text=_rounded("max_abs", 2)),
    Column(title="relative L2", text=_rounded("relative_l2", 2)),
    Column(title="note", text=_value("note")),
)
"""Of every table, in order; the last one stays the last."""
_USUAL = frozenset(
    {"case", "variant", "dtype", "sizes", "n", "median_s", "p20_s", "p80_s", "speedup", "compile_s", "gflop"}
    | {"gflop_per_s", "roof_gflop_per_s", "roof_share", "peak_mib", "psnr_db", "max_abs", "relative_l2", "note"}
)
"""What these columns and the conditions show of a file, or leave to it."""


def _spread(line: Line) -> str:
    if not line.get("p20_s") or line["n"] == "1":
        return ""
    return f"{float(line['p20_s']):.3g} to {float(line['p80_s']):.3g}"


if __name__ == "__main__":
    raise SystemExit(main())
