"""Measure on a GPU, the most valuable first: `python -m benchmarks.gpu_run [STEP ...] [--budget SECONDS] [--small]`.

Without a step all are done, in the order of their worth. Every row is in the CSV file as soon as it is known, and what
is there of the same commit and card is not done again. README.md says how it comes to a machine without a network.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_run.steps import STEPS
from benchmarks.gpu_run.unpack import use, word

DEFAULT_WORK = Path(tempfile.gettempdir(), "max-zimage-gpu-run")
RESULTS = Path(__file__).parents[1] / "results" / "gpu.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do steps; 0 if every row could be measured, 1 if one failed, was cut or not begun."""
    begin = time.time()
    options = _parse(arguments)
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    use(work, small=options.small)
    # Imported here: these need packages, which may be among what was unpacked.
    from benchmarks.gpu_run.checkpoint import begin_writing
    from benchmarks.gpu_run.results import Results, table
    from benchmarks.gpu_run.watch import Watch

    names = list(STEPS) if not options.steps or "all" in options.steps else options.steps
    if any(STEPS[name].process in ("pictures", "peers") for name in names):
        begin_writing(work, small=options.small)
    output = options.output or (work / "small.csv" if options.small else RESULTS)
    results = Results(output.absolute(), small=options.small, commit=options.commit or word(work, "commit"))
    watch = Watch(
        results, work=work, deadline=begin + options.budget, small=options.small, modules="benchmarks.gpu_run.stages"
    )
    whole = watch.run(names)
    if watch.lines:
        print(table(watch.lines))
    missed = sum(line["verdict"].startswith("MISSED") for line in watch.lines)
    said = ", ".join(f"{key} {results.conditions[key]}" for key in ("gpu", "driver", "max", "torch", "commit"))
    print(f"{len(watch.lines)} rows, {missed} MISSED; {time.time() - begin:.0f} s; {said}\n-> {output}", flush=True)
    return 0 if whole else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:11} {step.what}; {step.seconds:.0f} s" for name, step in STEPS.items()),
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"any of all, {', '.join(STEPS)}")
    parser.add_argument("--budget", type=float, default=900.0, metavar="S", help="seconds in all (default 900)")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, metavar="DIR", help="what is kept between calls")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"the CSV file (default {RESULTS.name} of results)")
    parser.add_argument("--small", action="store_true", help="small sizes on the CPU: does it run?")
    parser.add_argument("--commit", default="", help="of what is measured, where there is no checkout")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.steps if name not in ("all", *STEPS)]
    if unknown:
        parser.error(f"unknown step {', '.join(unknown)}; there are all, {', '.join(STEPS)}")
    if options.budget <= 0:
        parser.error(f"--budget must be more than 0 s, got {options.budget:g}")
    return options


if __name__ == "__main__":
    sys.exit(main())
