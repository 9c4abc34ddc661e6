"""The table of storages: a row for each, and a column for each thing whose error is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WEIGHTS = "a normal weight"
MODELS = "the embedded transformer"
BLOCKS = "a block of the published widths"
_COLUMNS = (WEIGHTS, MODELS, BLOCKS)
"""Cases of the file, in the order of the table."""
SURVEY: Mapping[str, str] = {
    "bfloat16": "1.7e-03",
    "Q8_0": "5.4e-03",
    "int8 by row": "8.6e-03",
    "fp8": "2.6e-02",
    "mxfp8": "2.6e-02",
    "Q5_0": "4.3e-02",
    "Q4_0": "8.6e-02",
    "nf4": "9.2e-02",
    "nvfp4": "9.5e-02",
}
"""The same of weights of deviation 0.02 by formulas that know nothing of this project."""


def table(lines: Sequence[Mapping[str, str]]) -> str:
    """Markdown.

    Args:
        lines: Of the CSV file, by column.
    """
    errors = {(line["variant"], line["case"]): float(line["relative_l2"]) for line in lines}
    surveyed = {line["variant"]: line["note"] for line in lines if line["case"] == WEIGHTS}
    heading = ["storage", WEIGHTS, "by a survey", *_COLUMNS[1:]]
    rows = [heading, ["---", *(["---:"] * (len(heading) - 1))]]
    for name in dict.fromkeys(line["variant"] for line in lines):
        weight, *others = (_cell(errors.get((name, case))) for case in _COLUMNS)
        rows.append([name, weight, surveyed.get(name, ""), *others])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}" if error else "0"
