"""Pages whose own words stand before a line, and what a parser or a table says behind it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.measure import ROOT
from max_zimage.cli import main as command_line


@dataclass(frozen=True, kw_only=True)
class WrittenPage:
    """One page.

    Attributes:
        file: Its name in docs/.
        module: Writes it: `python -m MODULE`.
        lines: Of the parser of the command line, what stands behind the page's own words.
    """

    file: str
    module: str
    lines: Callable[[argparse.ArgumentParser], Iterable[str]]

    @property
    def marker(self) -> str:
        """The line before what is written."""
        return f"<!-- from here on written by: python -m {self.module} -->\n"

    @property
    def text(self) -> str:
        """As it stands there."""
        return (ROOT / "docs" / self.file).read_text(encoding="utf-8")

    def rendered(self, text: str, parser: argparse.ArgumentParser) -> str:
        """The page with everything behind its marker made anew.

        Raises:
            ValueError: If the marker is missing.
        """
        own, marker, _ = text.partition(self.marker)
        if not marker:
            raise ValueError(f"docs/{self.file} needs the line {self.marker.strip()!r}")
        return "\n".join([f"{own}{marker}", *self.lines(parser)])

    def write(self) -> int:
        """Write it; the exit code."""
        file = ROOT / "docs" / self.file
        file.write_text(self.rendered(self.text, command_line._parser()), encoding="utf-8")
        print(file)
        return 0


def cell(text: str) -> str:
    """Text as Markdown shows it in a table's cell: no bars, no tags."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
