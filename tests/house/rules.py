"""Readers of the project's own files: who imports whom, which tasks there are, which versions are pinned."""

from __future__ import annotations

import argparse
import ast
import collections
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = frozenset({"max_zimage", "graphs", "kernels", "tests", "benchmarks", "references", "fuzzers"})

MAY_IMPORT = {
    "graphs": frozenset({"graphs"}),
    "max_zimage": frozenset({"max_zimage", "graphs"}),
    "tests": PROJECT - {"kernels"},
    "benchmarks": PROJECT - {"kernels"},
}
"""Of the project's own folders, by the folder that imports."""

MUST_NOT_IMPORT = {
    "graphs": [
        "max.pipelines",
        "max.serve",
        "transformers",
        "tokenizers",
        "huggingface_hub",
        "safetensors",
        "torch",
        "diffusers",
        "PIL",
        "rich",
        "psutil",
    ],
    "max_zimage": ["torch", "diffusers"],
}
"""Of everything else: graphs know nothing of requests, files and checkpoints; the references are for tests alone."""

REFERENCE_FILE = "max_zimage/diagnosis/reference.py"
"""The one file of the package that may import the references, and that runs in a process of its own."""

OPS_FILES = {f"graphs/{name}.py" for name in ("ops", "code_ops", "gpu_ops", "text_ops", "kernel_library")}
MOJO_NAMES = re.compile(r"custom_extensions|ops\.custom|inplace_custom|experimental\.custom|max\.nn\.kernels|\bmo\.")
"""What only these files may say: a Mojo op by name, MAX's or the project's own, and where a library of them is."""


def imported_modules(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module a file imports, wherever in the file; `from a import b` gives a and a.b.

    `graphs` is imported by its link inside the package, and is here what it is in the house: a folder beside it.
    """
    for line, name in _named_modules(path, root):
        yield line, name.removeprefix("max_zimage.") if f"{name}.".startswith("max_zimage.graphs.") else name


def _named_modules(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def import_violations(root: Path) -> list[str]:
    """Every import against the directions, as 'file:line imports module'."""
    found = []
    for folder, allowed in MAY_IMPORT.items():
        for path in sorted((root / folder).rglob("*.py")):
            for line, module in imported_modules(path, root):
                top = module.partition(".")[0]
                own = top in PROJECT and top not in allowed
                apart = path.relative_to(root).as_posix() == REFERENCE_FILE
                unwanted = [] if apart else MUST_NOT_IMPORT.get(folder, [])
                other = any(f"{module}.".startswith(f"{name}.") for name in unwanted)
                if own or other:
                    found.append(f"{path.relative_to(root).as_posix()}:{line} imports {module}")
    return found


def graphs_without_package(root: Path) -> list[str]:
    """Imports of `graphs` at the top level, where any graphs.py beside somebody's script would come before it."""
    return [
        f"{path.relative_to(root).as_posix()}:{line} imports {module}"
        for folder in MAY_IMPORT
        for path in sorted((root / folder).rglob("*.py"))
        for line, module in _named_modules(path, root)
        if f"{module}.".startswith("graphs.")
    ]


def mojo_names_elsewhere(root: Path) -> list[str]:
    """Lines outside the file of ops that name a Mojo op or load one."""
    return [
        f"{path.relative_to(root).as_posix()}:{number} {line.strip()}"
        for folder in ("graphs", "max_zimage")
        for path in sorted((root / folder).rglob("*.py"))
        if path.relative_to(root).as_posix() not in OPS_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MOJO_NAMES.search(line)
    ]


def private_names_of_max(root: Path) -> list[tuple[str, str]]:
    """Names with an underscore that `max_zimage` and `graphs` use but do not define, with the file, sorted.

    Imports count where they are MAX's; attributes where neither the project nor the standard library has the name.
    """
    paths = [path for folder in ("graphs", "max_zimage") for path in sorted((root / folder).rglob("*.py"))]
    paths = [path for path in paths if not path.is_relative_to(root / "max_zimage" / "graphs")]
    nodes = [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    own = _STANDARD | {name for _, node in nodes for name in _defined(node)}
    found = set()
    for path, node in nodes:
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr] if node.attr not in own else []
        elif isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("max."):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names if alias.name.startswith("max.") for part in alias.name.split(".")]
        file = path.relative_to(root).as_posix()
        found |= {(name, file) for name in names if re.match(r"_[^_]", name)}
    return sorted(found)


_STANDARD = frozenset(
    {*dir(argparse), *dir(argparse.ArgumentParser()), *dir(os), *dir(collections.namedtuple("_", ""))}
)
"""Names of the standard library that the project uses."""


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    return [node.attr] if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) else []


def third_party_modules(root: Path, folder: str) -> set[str]:
    """Top-level modules a folder imports besides the project's own."""
    paths = (root / folder).rglob("*.py")
    tops = {module.partition(".")[0] for path in paths for _, module in imported_modules(path, root)}
    return tops - PROJECT - {path.stem for path in (root / folder).glob("*.py")}


def make_tasks(root: Path) -> dict[str, tuple[str, str]]:
    """Environment ('runtime' or 'test') and command of every task of the Makefile, without what a user may add.

    A user adds by PROMPT and ARGS in make and by arguments after the task's name in pixi, both at the command's end.
    """
    text = (root / "Makefile").read_text(encoding="utf-8")
    tasks = {}
    for name, environment, recipe in re.findall(r"^([a-z-]+): \$\(VENV\)/\.(\w+).*\n((?:\t.*\n?)+)", text, re.M):
        command = recipe.strip().replace('$(if $(PROMPT),"$$PROMPT")', "").replace("$(ARGS)", "")
        tasks[name] = (environment, command.replace("$$", "$").strip())
    return tasks


def pixi_tasks(root: Path) -> dict[str, tuple[str, str]]:
    """The same of pixi.toml."""
    manifest = read_toml(root / "pixi.toml")
    runtime = {name: ("runtime", command) for name, command in manifest["tasks"].items()}
    test = {name: ("test", command) for name, command in manifest["feature"]["test"]["tasks"].items()}
    return runtime | test


def pins(requirements: list[str]) -> dict[str, str]:
    """Version by normalized name without its extras; '' where a requirement is not exact."""
    found = {}
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        found[re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()] = version
    return found


def ranges(requirements: list[str]) -> dict[str, SpecifierSet]:
    """Versions that are allowed, by normalized name."""
    found = [Requirement(each) for each in requirements]
    return {canonicalize_name(each.name): each.specifier for each in found}


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))
