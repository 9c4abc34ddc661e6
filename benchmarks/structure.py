"""How the code hangs together: who imports whom, in which direction, and what would be a circle.

A room is a folder in `max_zimage/`; files beside the rooms are leaves that anyone may import. `ROOMS` says who may
import whom, `make size` prints the figures, and tests hold both.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

ROOMS = (
    "cli",
    "batch",
    "serving",
    "profiling",
    "diagnosis",
    "pipeline",
    "enhancer",
    "diffusion_gemma",
    "components",
    "compile",
    "checkpoint",
    "device",
    "text",
    "request",
    "images",
    "sampling",
    "host",
    "graphs",
)
"""A room imports those behind it, never one before it."""
TOP = frozenset({"arch", "__main__"})
"""Files beside the rooms that import the top layer, and that nobody imports."""
WAY = (
    "pipeline/zimage.py",
    "pipeline/run.py",
    "pipeline/stages.py",
    "components/text_encoder.py",
    "pipeline/denoising.py",
    "pipeline/max_contract.py",
    "components/transformer.py",
    "pipeline/steppers/plain.py",
)
"""Files a picture goes through: those between a call in Python and the compiled graphs that it runs, in this order.

A test traces a picture and holds the list. What they call besides, such as checks and the plans of `sampling`, returns
to them.
"""
MAX_ON_THE_WAY = 9
MAX_FLAT_FILES = 12
MAX_FAN_OUT = 15

Imports = Mapping[str, frozenset[str]]
"""Module -> the modules of the project that it imports anywhere, lazily and for types too."""


def import_graph(root: Path) -> dict[str, frozenset[str]]:
    """Read who imports whom in `max_zimage` and `graphs`; `graphs` has the name by which it is imported."""
    files = {_name(path, root): path for path in sorted((root / "graphs").rglob("*.py"))}
    for path in sorted((root / "max_zimage").rglob("*.py")):
        if not path.is_relative_to(root / "max_zimage" / "graphs"):
            files[_name(path, root)] = path
    return {module: frozenset(_imported(module, path, files.keys())) for module, path in files.items()}


def against_the_order(imports: Imports) -> list[str]:
    """Imports from a room of one before it, as 'module imports module'."""
    found = []
    for module, imported in imports.items():
        for other in sorted(imported):
            here, there = room(module), room(other)
            backwards = here in ROOMS and there in ROOMS and ROOMS.index(there) < ROOMS.index(here)
            from_a_leaf = here not in ROOMS and here not in TOP and here != "" and there in ROOMS
            if backwards or from_a_leaf or (there in TOP - {here} and module != "max_zimage"):
                found.append(f"{module} imports {other}")
    return found


def circles(imports: Imports) -> list[list[str]]:
    """Modules that import each other, directly or by way of others; largest first."""
    reached = {module: _reached(module, imports) for module in imports}
    found: dict[frozenset[str], list[str]] = {}
    for module in imports:
        circle = frozenset(other for other in reached[module] if module in reached[other])
        if circle:
            found[circle] = sorted(circle)
    return sorted(found.values(), key=len, reverse=True)


def fan_out(imports: Imports) -> list[tuple[int, str]]:
    """How many modules of the project each imports, most first."""
    return sorted(((len(imported), module) for module, imported in imports.items()), reverse=True)


def flat_files(root: Path) -> list[str]:
    """Python files right in `max_zimage/`."""
    return sorted(path.name for path in (root / "max_zimage").glob("*.py"))


def naming(root: Path, word: str) -> list[str]:
    """Files of `max_zimage` that name something, such as a request field or, in quotes, a graph."""
    found = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    paths = [path for path in (root / "max_zimage").rglob("*.py") if "max_zimage/graphs" not in path.as_posix()]
    return sorted(path.relative_to(root).as_posix() for path in paths if found.search(path.read_text(encoding="utf-8")))


def room(module: str) -> str:
    """The room of a module, or its own name where it stands beside them; '' for the package itself."""
    return [*module.split("."), ""][1]


def _name(path: Path, root: Path) -> str:
    parts = [*path.relative_to(root).with_suffix("").parts]
    if parts[0] == "graphs":
        parts.insert(0, "max_zimage")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(module: str, path: Path, modules: Collection[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


def _reached(module: str, imports: Imports) -> frozenset[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for other in imports[waiting.pop()] - seen:
            seen.add(other)
            waiting.append(other)
    return frozenset(seen)
