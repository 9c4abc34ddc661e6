"""What every graph of the published models launches on GPUs, as text: in a file that tests compare with, and in docs.

    python -m tests.references.launches                           all graphs on sm_90a anew, three minutes
    python -m tests.references.launches denoise                   those that a change is about
    python -m tests.references.launches --target cuda:sm_100a     lists beside the page, which no test holds
    python -m tests.references.launches --symbols                 kernels of the machine code, half an hour

Each of them also writes the tables of docs/launches.md. No GPU is needed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from max_zimage.cli.compile import listing
from max_zimage.compile.ahead_of_time import FULL_MODEL, check_graphs, compile_target
from max_zimage.compile.cubins import symbol_lines
from max_zimage.compile.launches import Launches, Part
from max_zimage.compile.registry import AHEAD, MESHED, TWO
from tests.paths import ROOT
from tests.references import launch_page

DOCS = ROOT / "docs"
PINNED = "cuda:sm_90a"
FILES = {
    PINNED: Path(__file__).with_name("launches-sm_90a.txt"),
    "cuda:sm_100a": DOCS / "launches-sm_100a.txt",
}
"""What `max-zimage compile --target ... --list-kernels` says."""
SYMBOLS = Path(__file__).with_name("symbols-sm_90a.txt")
"""What `--symbols` adds to it."""
WITH_SYMBOLS = ("conditioning", "decode", "encode")
"""Graphs that are compiled for it, unless others are named."""
PAGE = DOCS / "launches.md"

_HEADING = re.compile(r"# (?P<name>\w+): (?:at most )?(?P<total>\d+) launch")
_PART = re.compile(r"## (?P<name>[\w.]+)(?:, (?P<times>\d+) times)?: \d+ launch")
_LOADING = "## before, at loading"
_SEVERAL = re.compile(r"(?P<times>\d+) times these \d+:")
_TIMES = re.compile(r"(?P<line>.*)  x (?P<times>\d+)")


def sections(file: Path = FILES[PINNED]) -> dict[str, str]:
    """The text of each graph in a file; none where there is no file."""
    texts = file.read_text().strip().split("\n\n") if file.exists() else []
    return {text.removeprefix("# ").partition(":")[0]: text for text in texts}


def read(text: str) -> Launches:
    """What a graph launches, from its text."""
    heading, *lines = text.splitlines()
    found = _HEADING.match(heading)
    assert found is not None, heading
    groups: list[tuple[str, int, list[str]]] = [(found["name"], 1, [])]
    for line in lines:
        if part := _PART.match(line):
            groups.append((part["name"], int(part["times"] or 1), []))
        elif line.startswith(_LOADING):
            groups.append((_LOADING, 1, []))
        else:
            groups[-1][2].append(line)
    loading = tuple(kernel for name, _, kernels in groups if name == _LOADING for kernel in _unfolded(kernels))
    parts = (
        Part(name=name, times=times, kernels=tuple(_unfolded(kernels)))
        for name, times, kernels in groups
        if name != _LOADING
    )
    return Launches(total=int(found["total"]), parts=tuple(parts), loading=loading)


def _unfolded(lines: Sequence[str]) -> Iterator[str]:
    """Every launch in a line of its own."""
    place = 0
    while place < len(lines):
        line, place = lines[place], place + 1
        if several := _SEVERAL.fullmatch(line):
            inner = []
            while place < len(lines) and lines[place].startswith("  "):
                inner.append(lines[place].removeprefix("  "))
                place += 1
            yield from [*_unfolded(inner)] * int(several["times"])
        else:
            several = _TIMES.fullmatch(line)
            yield from [several["line"]] * int(several["times"]) if several else [line]


def page() -> str:
    """The page, with its tables as they should be."""
    lists = {target: {name: read(text) for name, text in sections(file).items()} for target, file in FILES.items()}
    return launch_page.rendered(PAGE.read_text(), lists, sections(SYMBOLS))


def main(arguments: Sequence[str] | None = None) -> int:
    """List graphs, and put what is said of them in the place of what was said before."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.references.launches", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("graphs", nargs="*", metavar="GRAPH")
    parser.add_argument("--target", choices=FILES, default=PINNED)
    parser.add_argument("--symbols", action="store_true", help=f"of {PINNED}")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    options = parser.parse_args(arguments)
    graphs = check_graphs(options.graphs or (WITH_SYMBOLS if options.symbols else ()), mesh=TWO)
    file = SYMBOLS if options.symbols else FILES[options.target]
    ways = {"list_kernels": True, "symbols": options.symbols}
    for report in () if options.page else compile_target(FULL_MODEL, options.target, "bfloat16", graphs, **ways):
        if report.error is not None:
            print(listing(report), file=sys.stderr)
            return 1
        symbols = "\n".join([f"# {report.graph}:", *symbol_lines(report.symbols or ())])
        texts = sections(file) | {report.graph: symbols if options.symbols else listing(report)}
        print(texts[report.graph].partition("\n")[0], flush=True)
        file.write_text("\n\n".join(texts[graph] for graph in (*AHEAD, *MESHED) if graph in texts) + "\n")
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
