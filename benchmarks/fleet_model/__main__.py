"""The model of a fleet: `python -m benchmarks.fleet_model` plans large ones, writes a table and draws the plots.

With `--check` it only says how far the model is from the measurement of two replicas. The comparison stands in
docs/capacity.md between two marks.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fleet import RECORD
from benchmarks.fleet_model import calibrate, plan
from benchmarks.measure import RESULTS, ROOT, Conditions, table, write_csv

PAGE = ROOT / "docs" / "capacity.md"
_MARKED = re.compile(r"(<!-- compared -->\n).*?(<!-- end compared -->)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_model", description=__doc__.splitlines()[0])
    parser.add_argument("--plan", action="store_true", help="plan, compare with nothing")
    parser.add_argument("--check", action="store_true", help="compare with the measurement, plan nothing")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="of python -m benchmarks fleet")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="where the table goes")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs", metavar="DIR", help="where the plots go")
    options = parser.parse_args(arguments)
    from benchmarks.fleet_model import plots

    if not options.plan:
        beside = compared(calibrate.Record(options.record))
        print(beside)
        if options.check:
            return 0
        PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), beside), encoding="utf-8")
        plots.check(calibrate.Record(options.record), options.plots / "fleet-model.png")
    conditions, found = Conditions.now(), plan.rows()
    print(table(found, conditions))
    write_csv(options.output / "fleet_plan.csv", found, conditions)
    plots.plan(options.plots / "fleet-plan.png")
    return 0


def rendered(page: str, beside: str) -> str:
    """The page with a comparison.

    Args:
        page: Its text.
        beside: From `compared`.
    """
    return _MARKED.sub(lambda found: f"{found[1]}\n{beside}\n\n{found[2]}", page)


def compared(record: calibrate.Record) -> str:
    """The model beside the measurement, as a table."""
    slowdown = calibrate.fitted(record)
    lines = [
        f"Two replicas at work slow each other {slowdown:.2f} times, fitted at {calibrate.FITTED} of capacity.",
        "",
        "| of capacity | | pictures/s | mean, s | p50, s | p99, s | refused |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for load in record.loads:
        measured, foretold = record.measured(load), record.foretold(load, slowdown)
        off = calibrate.errors(measured, foretold)
        for name, each in (("measured", measured), ("model", foretold)):
            cells = f"{each.rate:.2f} | {each.mean:.2f} | {each.p50:.2f} | {each.p99:.2f} | {each.refused:.1%}"
            lines.append(f"| {load} | {name} | {cells} |")
        shares = " | ".join(f"{off[name]:+.0%}" for name in ("rate", "mean", "p50", "p99"))
        lines.append(f"| {load} | off by | {shares} | {off['refused']:+.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
