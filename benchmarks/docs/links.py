"""Links of Markdown files: where they lead, and which of them lead nowhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

_FENCE = re.compile(r"\s*(```|~~~)")
_CODE = re.compile(r"`[^`]*`")
_LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)")
_SOURCE = re.compile(r'(?:src|href)="(?P<target>[^"]+)"')
_HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.MULTILINE)
_MADE_ANCHOR = re.compile(r'<a (?:id|name)="([^"]+)"')


def without_code(text: str) -> str:
    """Blank out fenced code and code in a line; every other character keeps its place."""
    lines = []
    fence = ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        inside = bool(fence or mark)
        if mark:
            fence = "" if fence == mark[1] else fence or mark[1]
        lines.append(re.sub(r"[^\n]", "\0", line) if inside else line)
    return _CODE.sub(lambda code: re.sub(r"[^\n]", "\0", code[0]), "".join(lines))


def targets(text: str) -> list[tuple[int, str]]:
    """Line number and target of every link and image; what stands in code is not a link."""
    plain = without_code(text)
    found = [match for pattern in (_LINK, _SOURCE) for match in pattern.finditer(plain)]
    return sorted((plain.count("\n", 0, match.start()) + 1, match["target"]) for match in found)


def replaced(text: str, change: Callable[[str], str]) -> str:
    """A text with the target of every link made anew by `change`; what stands in code stays."""
    parts = []
    end = 0
    for match in _LINK.finditer(without_code(text)):
        parts += [text[end : match.start("target")], change(match["target"])]
        end = match.end("target")
    return "".join([*parts, text[end:]])


def anchors(text: str) -> set[str]:
    """What may stand behind a '#': the headings' names as code hosts and site builders make them, and `<a id>`."""
    found = set(_MADE_ANCHOR.findall(text))
    plain = without_code(text)
    for heading in _HEADING.finditer(plain):
        name = slug(text[heading.start(1) : heading.end(1)])
        count = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", known) is not None for known in found)
        found.add(f"{name}-{count}" if name in found else name)
    return found


def slug(heading: str) -> str:
    """A heading's anchor: lower case, words joined by '-', no punctuation.

    A heading may hold no link and no punctuation between spaces: builders disagree on what these become.
    """
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return plain.strip().replace(" ", "-")


def is_outside(target: str) -> bool:
    """Whether a target is an address rather than a file of the project."""
    return re.match(r"[a-z][a-z0-9+.-]*:", target) is not None


def markdown_files(root: Path) -> list[Path]:
    """Markdown files of the project: tracked, or new and not ignored; all where there is no git."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(words, cwd=root, capture_output=True, text=True)
    if listed.returncode:
        return sorted(path for path in root.rglob("*.md") if ".venv" not in path.parts)
    return sorted({root / name for name in listed.stdout.split("\0") if name and (root / name).is_file()})


def broken(root: Path, files: Sequence[Path]) -> list[str]:
    """Links that lead nowhere, as 'file:line target: what is wrong'."""
    found = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        for number, target in targets(text):
            wrong = "" if is_outside(target) else _wrong(file, text, target)
            if wrong:
                found.append(f"{file.relative_to(root).as_posix()}:{number} {target}: {wrong}")
    return found


def _wrong(file: Path, text: str, target: str) -> str:
    name, _, anchor = target.partition("#")
    path = file.parent / name if name else file
    if not path.exists():
        return "no such file"
    if anchor and path.suffix == ".md":
        known = anchors(path.read_text(encoding="utf-8") if name else text)
        return "" if anchor in known else f"no such heading among {', '.join(sorted(known))}"
    return ""
