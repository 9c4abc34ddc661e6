"""The table of the profiler's sweep: a row for each configuration, its parts and their total abreast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.sweep import CASES
from max_zimage.cli.sweep_configurations import BASELINE

_HEADING = ("configuration", "encoding, s", "drawing, s", "total, s", "speed", "MiB", "note")


def table(lines: Sequence[Mapping[str, str]]) -> str:
    """Markdown; the total is the sum of the parts' medians, and speed the baseline's over it.

    Raises:
        ValueError: If a configuration lacks a part.
    """
    found = {(line["case"], line["variant"]): line for line in lines}
    rows = [_HEADING, ("---", *["---:"] * 5, "---"), *_rows(found, dict.fromkeys(line["variant"] for line in lines))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rows(found: Mapping[tuple[str, str], Mapping[str, str]], names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    totals: dict[str, float | None] = {}
    for name in names:
        if missing := [case for case in CASES.values() if (case, name) not in found]:
            raise ValueError(f'sweep.csv has no {name} under {missing}; measure it: make bench ARGS="sweep"')
        parts = [found[case, name] for case in CASES.values()]
        seconds = [float(part["median_s"]) if part["median_s"] else None for part in parts]
        totals[name] = None if None in seconds else sum(each for each in seconds if each is not None)
        base, total = totals.get(BASELINE), totals[name]
        yield (
            name,
            *map(_digits, (*seconds, total)),
            f"{base / total:.2f}x" if base and total else "",
            parts[-1]["peak_mib"],
            parts[-1]["note"].replace("|", "\\|"),
        )


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:#.3g}".rstrip(".")
