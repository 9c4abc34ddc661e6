"""`make fuzz`: every fuzzer in its long form, as a table.

Short forms of the same run in the test suite; how much each tries here is what a night or a coffee has time for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from tests.fuzzers.tally import Tally

COUNTS = {"images": 5000, "configs": 1000, "artifacts": 100, "disks": 20, "kills": 20, "requests": 10_000}
"""Fuzzer -> inputs of its long form; 100 picture files take seconds, one kill a start of the server."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run fuzzers and print what became of their inputs; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzers", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COUNTS)}; all if none is given")
    parser.add_argument("--count", type=int, metavar="N", help="inputs of each fuzzer in place of its own number")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the inputs; 0 if not given")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in COUNTS]:
        parser.error(f"no fuzzer is called {unknown[0]}; there are {', '.join(COUNTS)}")
    if options.count is not None and options.count < 1:
        parser.error(f"--count must be at least 1, got {options.count}")
    rows = [_row(name, options.count or COUNTS[name], options.seed) for name in options.names or COUNTS]
    print("| what | inputs tried | right | refused, and told why | wrong | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, tally, seconds in rows:
        wrong = len(tally.wrong)
        print(f"| {name} | {tally.tried:,} | {tally.right:,} | {tally.refused:,} | {wrong} | {seconds:.0f} |")
    for name, tally, _ in rows:
        for sentence in tally.wrong:
            print(f"{name}: {sentence}")
    return 1 if any(tally.wrong for _, tally, _ in rows) else 0


def _row(name: str, count: int, seed: int) -> tuple[str, Tally, float]:
    print(f"{name}: {count} inputs", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    tally: Tally = import_module(f"tests.fuzzers.{name}").fuzz(count, seed)
    return name, tally, time.perf_counter() - begin


if __name__ == "__main__":
    raise SystemExit(main())
