"""The site of docs/, built strictly, in build/site: `make docs`. Its pages open as files; its search needs a server.

Pages link to files beside docs/, such as kernels/README.md: these are gathered too, under repository/. Pages of the API
are made from the docstrings, one for each room, by reading the sources: nothing of them is imported. A dead link, a
dead anchor or a page that the navigation lacks ends the build.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.docs import links
from benchmarks.measure import ROOT
from benchmarks.structure import ROOMS

CONFIGURATION = "zensical.toml"
_PATTERN = re.compile(r'"(?P<folder>[\w-]+)/\*\.md"')


def main(arguments: Sequence[str] | None = None) -> int:
    """Gather the pages and build the site; 1 if it cannot be built as it should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docs", description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=ROOT / "build", metavar="DIR", help="folder for pages and site")
    options = parser.parse_args(arguments)
    dead = links.broken(ROOT, links.markdown_files(ROOT))
    if dead:
        print("links that lead nowhere:", *dead, sep="\n  ", file=sys.stderr)
        return 1
    command = shutil.which("zensical")
    if command is None:
        print("no zensical on the path; install it: pip install -c constraints.txt -e '.[test]'", file=sys.stderr)
        return 1
    shutil.rmtree(options.into / "site", ignore_errors=True)
    configuration = gather(ROOT, options.into)
    lost = missing_pages(configuration)
    if lost:
        print(f"{CONFIGURATION} has no place in nav for: {', '.join(lost)}", file=sys.stderr)
        return 1
    words = [command, "build", "--strict", "--clean", "--config-file", str(configuration)]
    done = subprocess.run(words, env=os.environ | {"NO_COLOR": "1"}).returncode
    if done:
        print("the site has faults, listed above", file=sys.stderr)
        return 1
    print(f"site: {options.into / 'site' / 'index.html'}")
    return 0


def gather(root: Path, into: Path) -> Path:
    """Copy the pages and all that they link to, and write the API's pages.

    Args:
        root: The project.
        into: Gets `pages/` and the configuration that a builder reads.

    Returns:
        The configuration's path.
    """
    pages = into / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    waiting = sorted(path for path in (root / "docs").rglob("*") if path.is_file())
    seen = set(waiting)
    while waiting:
        file = waiting.pop()
        place = pages / placed(root, file)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix != ".md":
            shutil.copyfile(file, place)
            continue
        text = file.read_text(encoding="utf-8")
        place.write_text(links.replaced(text, functools.partial(_moved, root, file)), encoding="utf-8")
        linked = {path for _, target in links.targets(text) if (path := _linked(file, target))} - seen
        seen |= linked
        waiting += sorted(linked)
    api = pages / "api"
    api.mkdir(exist_ok=True)
    (api / "index.md").write_text(public_page(root), encoding="utf-8")
    for room in ROOMS:
        (api / f"{room}.md").write_text(api_page(root, room), encoding="utf-8")
    configuration = into / CONFIGURATION
    configuration.write_text(_configured(root, pages), encoding="utf-8")
    return configuration


def placed(root: Path, file: Path) -> Path:
    """Where a file of the project lies in the site."""
    name = file.relative_to(root)
    return name.relative_to("docs") if name.parts[0] == "docs" else Path("repository") / name


def _linked(file: Path, target: str) -> Path | None:
    """The file that a link leads to; None for an address, a heading and a folder."""
    name = target.partition("#")[0]
    if links.is_outside(target) or not name:
        return None
    path = Path(os.path.normpath(file.parent / name))
    return path if path.is_file() else None


def _moved(root: Path, file: Path, target: str) -> str:
    """A link's target as it is between the places of both files."""
    path = _linked(file, target)
    if path is None:
        return target
    _, mark, anchor = target.partition("#")
    here = placed(root, file).parent
    return f"{os.path.relpath(placed(root, path), here)}{mark}{anchor}"


def public_page(root: Path) -> str:
    """Markdown from which the builder makes the API of the package itself: what its `__all__` names, whole."""
    tree = ast.parse((root / "max_zimage" / "__init__.py").read_text(encoding="utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    options = "    options:\n      inherited_members: true\n"
    return "\n".join(["# max_zimage\n", *(f"::: max_zimage.{name}\n{options}" for name in names if name[0] != "_")])


def api_page(root: Path, room: str) -> str:
    """Markdown from which the builder makes the API of a room: each module under its name."""
    folder = root / ("graphs" if room == "graphs" else f"max_zimage/{room}")
    files = [path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]
    modules = [".".join(path.relative_to(folder).with_suffix("").parts) for path in files]
    sections = [f"::: max_zimage.{room}.{module}\n" for module in modules]
    return "\n".join([f"# max_zimage.{room}\n", *sections])


def missing_pages(configuration: Path) -> list[str]:
    """Pages of docs/ that the navigation does not name."""
    project = tomllib.loads(configuration.read_text(encoding="utf-8"))["project"]
    pages = configuration.parent / project["docs_dir"]
    named = set(_named(project["nav"]))
    found = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    return sorted(page for page in found - named if not page.startswith("repository/"))


def _named(navigation: Any) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
        return
    for part in navigation.values() if isinstance(navigation, dict) else navigation:
        yield from _named(part)


def _configured(root: Path, pages: Path) -> str:
    """The configuration with 'folder/*.md' replaced by the pages that are there, under their headings."""

    def entries(match: re.Match[str]) -> str:
        files = sorted((pages / match["folder"]).glob("*.md"), key=lambda file: (file.stem != "index", file.stem))
        named = [(_title(file), file.relative_to(pages).as_posix()) for file in files]
        return ", ".join(f"{{ {json.dumps(title)} = {json.dumps(page)} }}" for title, page in named)

    text = (root / CONFIGURATION).read_text(encoding="utf-8")
    return _PATTERN.sub(entries, text).replace('paths = ["."]', f"paths = [{json.dumps(str(root))}]")


def _title(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


if __name__ == "__main__":
    raise SystemExit(main())
