"""How long files and functions are and how they hang together: `make size` prints it, tests hold the limits.

Short files and functions are what lets a newcomer find a feature by its name and read it in one go.
"""

from __future__ import annotations

import argparse
import ast
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import structure

FOLDERS = ("max_zimage", "graphs", "kernels", "tests", "benchmarks")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = {".py": 60, ".mojo": 150}
NAMED = {"a request field, cfg_truncation": "cfg_truncation", "a graph, taylor_step": '"taylor_step"'}
"""What is counted as an example: how many files a new one would touch, those that act on it included."""
TABLES = frozenset({"max_zimage/checkpoint/names.py"})
"""Files that are one literal table, which is read by looking things up: free of the limit on lines."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """One function, from its first decorator or `def` to its last line."""

    name: str
    line: int
    length: int


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One source file; `name` is its path from the root with slashes."""

    name: str
    lines: int
    functions: tuple[Function, ...]


def measure(root: Path, folder: str) -> list[SourceFile]:
    """Measure the Python and Mojo files below a folder, longest first."""
    paths = [path for path in (root / folder).rglob("*") if path.suffix in MAX_FUNCTION_LINES]
    files = [_measure_file(root, path) for path in paths]
    return sorted(files, key=lambda file: (-file.lines, file.name))


def excesses(files: Sequence[SourceFile]) -> list[str]:
    """Say what is over its limit, one line each."""
    found = [
        f"{file.name}: {file.lines} lines, at most {MAX_FILE_LINES}"
        for file in files
        if file.lines > MAX_FILE_LINES and file.name not in TABLES
    ]
    for file in files:
        limit = MAX_FUNCTION_LINES[Path(file.name).suffix]
        found += [
            f"{file.name}:{function.line} {function.name}: {function.length} lines, at most {limit}"
            for function in file.functions
            if function.length > limit
        ]
    return found


def structure_figures(root: Path) -> list[tuple[str, int, int]]:
    """What is counted beside lines: its name, how many there are, how many there may be."""
    imports = structure.import_graph(root)
    most, module = structure.fan_out(imports)[0]
    return [
        ("circles of imports", len(structure.circles(imports)), 0),
        ("imports against the order of rooms", len(structure.against_the_order(imports)), 0),
        ("files beside the rooms of max_zimage", len(structure.flat_files(root)), structure.MAX_FLAT_FILES),
        ("files a picture goes through", len(structure.WAY), structure.MAX_ON_THE_WAY),
        (f"modules that one module imports (most: {module})", most, structure.MAX_FAN_OUT),
    ]


def _measure_file(root: Path, path: Path) -> SourceFile:
    text = path.read_text(encoding="utf-8")
    functions = _python_functions(text) if path.suffix == ".py" else _mojo_functions(text)
    return SourceFile(name=path.relative_to(root).as_posix(), lines=len(text.splitlines()), functions=tuple(functions))


def _python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            yield Function(name=node.name, line=node.lineno, length=last - node.lineno + 1)


def _mojo_functions(text: str) -> Iterator[Function]:
    """By indentation, which Mojo uses as Python does: a function ends before the next line as far left as its `def`."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        words = line.replace("(", " ").replace("[", " ").split()
        if len(words) < 2 or words[0] != "def":
            continue
        indent = _indent(line)
        last, in_signature = index, not line.rstrip().endswith(":")
        for offset, other in enumerate(lines[index + 1 :], index + 1):
            if other.strip() and _indent(other) <= indent and not in_signature:
                break
            in_signature = in_signature and not other.rstrip().endswith(":")
            last = offset if other.strip() else last
        yield Function(name=words[1], line=index + 1, length=last - index + 1)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _row(folder: str, files: Sequence[SourceFile]) -> str:
    lengths = sorted(function.length for file in files for function in file.functions)
    median = statistics.median(lengths) if lengths else 0
    p90 = lengths[int(0.9 * (len(lengths) - 1))] if lengths else 0
    longest = files[0] if files else None
    return (
        f"| {folder} | {len(files)} | {sum(file.lines for file in files)} "
        f"| {f'{longest.lines} {longest.name}' if longest else '-'} "
        f"| {len(lengths)} | {median:g} / {p90} / {lengths[-1] if lengths else 0} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and what is over its limit; 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.size")
    parser.add_argument("--files", action="store_true", help="also list every file")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parent.parent
    measured = {folder: measure(root, folder) for folder in FOLDERS}
    print("| folder | files | lines | longest file | functions | lines a function: median / p90 / max |")
    print("|---|---|---|---|---|---|")
    for folder, files in measured.items():
        print(_row(folder, files))
    everything = [file for files in measured.values() for file in files]
    if options.files:
        print()
        for file in everything:
            print(f"{file.lines:6} {max((item.length for item in file.functions), default=0):4} {file.name}")
    print()
    problems = excesses(everything)
    for what, word in NAMED.items():
        print(f"files of max_zimage that name {what}: {len(structure.naming(root, word))}")
    for what, figure, limit in structure_figures(root):
        print(f"{what}: {figure}, at most {limit}")
        problems += [f"{what}: {figure}, at most {limit}"] if figure > limit else []
    print("\n" + "\n".join(problems or ["Nothing is over its limit."]))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
