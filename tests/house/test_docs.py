"""Pages keep to the code: links, rooms, flags, private names of MAX, diffs that apply, a README that stays short."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import structure
from benchmarks.docs import __main__ as site
from benchmarks.docs import cli_page, links
from max_zimage.cli.main import _parser
from tests.house.rules import private_names_of_max
from tests.paths import ROOT

DOCS = ROOT / "docs"
PAGES = links.markdown_files(ROOT)
DIFF = re.compile(r"<!-- this diff applies -->\n```diff\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_links_lead_somewhere() -> None:
    assert {"README.md", "CONTRIBUTING.md", "kernels/README.md"} <= {str(page.relative_to(ROOT)) for page in PAGES}
    assert links.broken(ROOT, PAGES) == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    plain = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    folders = "max_zimage|graphs|kernels|tests|benchmarks|docs"
    named = re.findall(rf"`((?:{folders})/[\w/.-]*)`", plain)
    made_later = {"benchmarks/results/gpu.csv"}
    assert [name for name in named if name not in made_later and not (ROOT / name).exists()] == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    text = """# A heading, `code` and a [b](other.md#two)

[a
b](other.md) [c](none.md) [d](other.md#two) [e](other.md#nine) [f](#here-1) [g](#gone) `[h](code.md)` <img src="i.png">

## Here
## Here

```md
# Nothing
[j](fenced.md)
```
[k](https://example.com/none) [l](#nothing)
"""
    (tmp_path / "page.md").write_text(text)
    (tmp_path / "other.md").write_text("# One\n\n### Two\n")
    found = links.broken(tmp_path, links.markdown_files(tmp_path))
    assert sorted(re.sub(" among .*", "", each) for each in found) == [
        "page.md:13 #nothing: no such heading",
        "page.md:4 #gone: no such heading",
        "page.md:4 i.png: no such file",
        "page.md:4 none.md: no such file",
        "page.md:4 other.md#nine: no such heading",
    ]


def test_the_readme_is_short_and_names_its_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert text.count("![") == 1
    assert "make generate" in text
    assert "make test" in text
    assert ".ci/run" in text
    linked = {target for _, target in links.targets(text)}
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(ROOT).as_posix()
        assert name in linked or name in ("docs/index.md",) or "how-to" in name, f"README.md has no link to {name}"


def test_the_page_of_the_command_line_is_the_parsers() -> None:
    page = cli_page.PAGE
    assert page.rendered(page.text, _parser()) == page.text, "run: python -m benchmarks.docs.cli_page"
    assert "`--step-cache CACHE`" in page.text
    assert "## max-zimage serve" in page.text
    with pytest.raises(ValueError, match="needs the line"):
        page.rendered("# Command line", _parser())


def test_the_architecture_has_every_room_in_its_order() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| `([\w/.]+)` \|$", text, re.MULTILINE)
    assert [room for room, _ in rows] == list(structure.ROOMS)
    for room, file in rows:
        assert (ROOT / file).is_file()
        assert f"{room}/" in file
    leaves = {name for name in structure.flat_files(ROOT) if not name.startswith("__")}
    assert {name for name in leaves if f"`{name}`" in text} == leaves


def test_contributing_names_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## The tasks")[0]
    named = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)))
    assert [room for room in named if room in structure.ROOMS] == [room for room in structure.ROOMS if room != "graphs"]


def test_the_page_of_upgrades_has_every_private_name_of_max(tmp_path: Path) -> None:
    found = private_names_of_max(ROOT)
    text = (DOCS / "how-to" / "upgrade-max.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^## 2\..*?(?=^## 3\.)", text, re.DOTALL | re.MULTILINE)
    rows = [line for line in table.splitlines() if line.startswith(("| `", "| _"))]
    for name, file in found:
        here = [row for row in rows if f"`{file}`" in row and re.search(rf"(?<!\w){name}\b", row)]
        assert here, f"docs/how-to/upgrade-max.md has no row for {name}, which {file} uses"
    for row in rows:
        (file,) = re.findall(r"`((?:graphs|max_zimage)/[\w/.]+)`", row)
        used = {name for name, where in found if where == file}
        assert any(re.search(rf"(?<!\w){name}\b", row) for name in used), f"nothing is used any more of: {row}"

    (tmp_path / "graphs").mkdir()
    code = (
        "from max._a import b\nfrom max.c import _d, e\ne._f\nself._own = 1\nself._own\nself._theirs\nimport max.x._g\n"
    )
    (tmp_path / "graphs" / "a.py").write_text(code)
    assert [name for name, _ in private_names_of_max(tmp_path)] == ["_a", "_d", "_f", "_g", "_theirs"]


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_diffs_apply(page: Path) -> None:
    for diff in DIFF.findall(page.read_text(encoding="utf-8")):
        words = ["git", "apply", "--check", "--recount", "-"]
        tried = subprocess.run(words, input=diff, cwd=ROOT, capture_output=True, text=True)
        assert tried.returncode == 0, f"{page.name} shows a change that no longer applies: {tried.stderr}"


def test_how_to_pages_show_a_diff() -> None:
    for page in (DOCS / "how-to").glob("*.md"):
        assert "```diff\n" in page.read_text(encoding="utf-8"), f"{page.name} has no diff"


def test_pages_are_gathered_with_what_they_link_to(tmp_path: Path) -> None:
    configuration = site.gather(ROOT, tmp_path)
    pages = tmp_path / "pages"
    assert links.broken(pages, sorted(pages.rglob("*.md"))) == []
    assert (pages / "repository" / "kernels" / "README.md").is_file()
    assert site.missing_pages(configuration) == []
    api = "".join(page.read_text() for page in (pages / "api").glob("*.md"))
    modules = [name for name in structure.import_graph(ROOT) if structure.room(name) in structure.ROOMS]
    described = set(re.findall(r"^::: ([\w.]+)$", api, re.MULTILINE))
    assert {name for name in modules if name.count(".") > 1} - described <= packages()
    assert "max_zimage.ZImagePipeline" in described

    (pages / "lost.md").write_text("# Lost\n")
    assert site.missing_pages(configuration) == ["lost.md"]


def packages() -> set[str]:
    """Packages inside of rooms, whose __init__ holds nothing but a docstring."""
    found = [*(ROOT / "max_zimage").glob("*/*/__init__.py"), *(ROOT / "graphs").glob("*/__init__.py")]
    names = [".".join(path.parent.relative_to(ROOT).parts) for path in found]
    return {name if name.startswith("max_zimage") else f"max_zimage.{name}" for name in names}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a](gone.md)\n", "page does not exist"),
        ("[a](gpu.md#gone)\n", "anchor does not exist"),
        ("::: max_zimage.pipeline.gone\n", "max_zimage.pipeline.gone"),
    ],
)
@pytest.mark.skipif(shutil.which("zensical") is None, reason="needs zensical")
def test_a_fault_ends_the_build(tmp_path: Path, text: str, said: str) -> None:
    """Of a small site: one of all pages takes some ten seconds, and `make docs` builds that."""
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.md").write_text(f"# Index\n\n{text}")
    (pages / "gpu.md").write_text("# GPU\n")
    configuration = (ROOT / site.CONFIGURATION).read_text().replace('paths = ["."]', f'paths = ["{ROOT}"]')
    nav = re.compile(r"^nav = \[.*?^\]\n", re.DOTALL | re.MULTILINE)
    (tmp_path / site.CONFIGURATION).write_text(nav.sub('nav = ["index.md", "gpu.md"]\n', configuration))
    # MAX, once imported, names its Python in the environment; a zensical of another installation needs its own.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = ["zensical", "build", "--strict"]
    built = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=variables)
    assert built.returncode != 0
    assert said in re.sub(r"\x1b\[[\d;]*m", "", built.stdout + built.stderr)
