"""Tables of the report: a part's lines to Markdown, a few of them as a summary, and the conditions below."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import quality_table, storage_table, sweep_table
from benchmarks.measure import RESULT_COLUMNS

Line = dict[str, str]
"""Of a CSV file, by column."""

PLOTS: Mapping[str, str] = {
    "resolutions": "seconds of a block over tokens, with the fit's linear and quadratic parts",
    "waterfall": "seconds of a picture, one optimisation more in each row",
}
"""Parts with a plot -> what it shows."""
SHOWN: Mapping[str, tuple[str, ...]] = {"end_to_end": ("prompt to picture", "torch.compile", "MAX's built-in pipeline")}
"""Parts of which only some cases are shown -> how these begin."""
COMMANDS: Mapping[str, str] = {
    "quality": "make quality",
    "fleet_plan": "python -m benchmarks.fleet_model",
    "quality-requests": "make quality ARGS=requests",
    "published_size-avx2": "make bench ARGS=published_size",
    "embedded_model": 'make embedded-model ARGS="evaluate max_zimage/assets/tiny-zimage"',
}
"""How parts are measured that are not `make bench`'s, or are rows of a further processor."""
TABLES: Mapping[str, Callable[[Sequence[Line]], str]] = {
    "quality": quality_table.table,
    "storage_errors": storage_table.table,
    "sweep": sweep_table.table,
}
"""Parts whose tables are not a row for each line."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A few rows and columns of a part.

    Attributes:
        part: Whose CSV file it is from.
        case: The one case that is shown; "" for the table of step caches.
        rows: Variants, or names of step caches, in the order of the table.
        columns: Titles of the columns behind the first.
    """

    part: str
    case: str = ""
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ()


SUMMARIES: Mapping[str, Summary] = {
    "summary": Summary(
        part="end_to_end",
        case="prompt to picture, 128x128, 50 steps, guidance 4",
        rows=(
            "diffusers",
            "diffusers, torch.compile of transformer and VAE",
            "ours",
            "ours, first_block",
            "ours, taylorseer",
        ),
        columns=("seconds", "speed", "PSNR, dB"),
    ),
    "step_cache_choices": Summary(
        part="quality",
        rows=(
            "none",
            "first_block 0.06 (default)",
            "first_block 0.15",
            "taylorseer 2, order 1, warm-up 4 / 9",
            "taylorseer 5, order 1, warm-up 9 (default)",
        ),
    ),
}
"""Name between markers -> what is shown."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        title: Its heading.
        text: A CSV file's line to a cell; empty where there is nothing to say.
    """

    title: str
    text: Callable[[Line], str]


def section(name: str, lines: Sequence[Line], *, results: str = "benchmarks/results", plots: str = "docs") -> str:
    """What stands between the markers of a part or a summary; folders are as its page names them in links."""
    if name in SUMMARIES:
        return _summary(SUMMARIES[name], lines, results)
    if name in TABLES:
        return f"\n{TABLES[name](lines)}\n\n{conditions(name, lines, results)}\n\n"
    shown = [line for line in lines if line["case"].startswith(SHOWN.get(name, ("",)))]
    plot = f"\n![{PLOTS[name]}]({os.path.normpath(f'{plots}/{name}.png')})\n" if name in PLOTS else ""
    return f"\n{table(shown)}\n\n{conditions(name, shown, results)}\n{plot}\n"


def _summary(summary: Summary, lines: Sequence[Line], results: str) -> str:
    if not summary.case:
        made = quality_table.table(lines, summary.rows)
        return f"\n{made}\n\n{conditions(summary.part, lines, results)}\n\n"
    found = {line["variant"]: line for line in lines if line["case"] == summary.case}
    missing = [row for row in summary.rows if row not in found]
    if missing:
        raise ValueError(f'{summary.part}.csv has no {missing} under "{summary.case}"; measure: make bench')
    columns = [column for column in COLUMNS if column.title in summary.columns]
    shown = [found[row] for row in summary.rows]
    rows = [[line["variant"], *(column.text(line) for column in columns)] for line in shown]
    heading = [[summary.case, *summary.columns], ["---", *("---:" for _ in columns)]]
    made = "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in [*heading, *rows])
    return f"\n{made}\n\n{conditions(summary.part, shown, results)}\n\n"


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


def conditions(part: str, lines: Sequence[Line], results: str) -> str:
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
    return f"<sub>{note}`{command}`: {said}; [all columns]({results}/{part}.csv)</sub>"


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
