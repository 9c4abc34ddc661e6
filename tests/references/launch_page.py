"""The tables of docs/launches.md, from the lists of launches.

<!-- launches: NAME -->          everything between these two lines is written here
<!-- end -->
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from max_zimage.compile.launches import Launches, Part
from max_zimage.compile.registry import GRAPHS
from max_zimage.graphs.kernel_library import KERNELS

Lists = Mapping[str, Mapping[str, Launches]]
"""Target -> graph -> launches."""


def own_ops() -> list[str]:
    """Names of the ops for a GPU, as MAX's compiler has them."""
    sources = "".join(file.read_text() for file in sorted(KERNELS.glob("gpu_*.mojo")))
    return re.findall(r'@extensibility\.register\("max_zimage\.(\w+)"\)', sources)


KINDS: Mapping[str, re.Pattern[str]] = {
    "own ops": re.compile(rf"\b({'|'.join(own_ops())})\b"),
    "products": re.compile(r"\bmatmul\b"),
    "attention": re.compile(r"\bmha\.|flash_attention"),
    "convolutions": re.compile(r"\bconv\b"),
}
"""Kind of a launch -> what its line has; all others are the compiler's: elementwise passes, reductions, copies."""
OTHERS = "others"

_MARKED = re.compile(r"(<!-- launches: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_RESULT = re.compile(r" -> .*")


def rendered(page: str, lists: Lists, symbols: Mapping[str, str]) -> str:
    """The page with its tables written.

    Args:
        page: As it is.
        lists: Launches.
        symbols: Graph -> kernels of its machine code, as text.
    """
    parts: dict[str, Callable[[], str]] = {
        "graphs": lambda: _graphs(lists),
        "main-block": lambda: _block(lists, "main_block"),
        "symbols": lambda: _symbols(symbols),
    }
    return _MARKED.sub(lambda found: f"{found[1]}{parts[found[2]]()}\n{found[4]}", page)


def kind(launch: str) -> str:
    """What kind of launch a line is."""
    return next((name for name, pattern in KINDS.items() if pattern.search(launch)), OTHERS)


def _graphs(lists: Lists) -> str:
    first, *others = lists
    kinds = [*KINDS, OTHERS]
    heading = ["graph", "runs", f"launches on {first}", "made of", *kinds, *(f"on {target}" for target in others)]
    rows = [heading, ["---", "---", "---:", "---", *["---:"] * (len(kinds) + len(others))]]
    for graph, launches in lists[first].items():
        counts: Counter[str] = Counter()
        for part in counted(launches.parts):
            for launch in part.kernels:
                counts[kind(launch)] += part.times
        assert counts.total() == launches.total, graph
        elsewhere = [str(lists[target][graph].total) if graph in lists[target] else "" for target in others]
        made = " + ".join(f"{_often(part)}{len(part.kernels)}" for part in counted(launches.parts))
        numbers = [str(counts[name] or "") for name in kinds]
        rows.append([graph, GRAPHS[graph].runs, str(launches.total), made, *numbers, *elsewhere])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def counted(parts: Iterable[Part]) -> list[Part]:
    """The parts that add up to a graph's total: of a condition's two ways the longer one."""
    by_name = {part.name: part for part in parts}
    kept = []
    for name, part in by_name.items():
        other = by_name.get(re.sub(r"\.(if|else)(\d*)$", lambda found: _OTHER_WAY[found[1]] + found[2], name), part)
        longer = len(part.kernels) > len(other.kernels) or (len(part.kernels) == len(other.kernels) and ".if" in name)
        if other is part or longer:
            kept.append(part)
    return kept


_OTHER_WAY = {"if": ".else", "else": ".if"}


def _often(part: Part) -> str:
    return f"{part.times} x {part.name}'s " if part.times > 1 else ""


def _block(lists: Lists, name: str) -> str:
    (block,) = (part for part in next(iter(lists.values()))["denoise"].parts if part.name == name)
    lines = [f"{number}. `{_RESULT.sub('', kernel)}`" for number, kernel in enumerate(block.kernels, 1)]
    return "\n".join(lines)


def _symbols(symbols: Mapping[str, str]) -> str:
    rows = ["| graph | kernels of its machine code |", "|---|---|"]
    for graph, text in symbols.items():
        _, _, *lines = text.splitlines()
        names = dict.fromkeys(line.partition(":")[0] for line in lines)
        rows.append(f"| {graph} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(rows)
