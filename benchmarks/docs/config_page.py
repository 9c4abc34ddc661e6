"""The keys of a configuration file for docs/config.md, from their table: `python -m benchmarks.docs.config_page`.

The page's own words stand before the marker, the tables behind it. A test holds the page equal to the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.docs.cli_page import _escaped
from benchmarks.measure import ROOT
from max_zimage.cli import main as command_line
from max_zimage.cli.config import all_keys
from max_zimage.cli.config_example import example_of
from max_zimage.cli.other_flags import OTHERS
from max_zimage.request.configuration.key import Key
from max_zimage.request.fields import FLAGS

PAGE = ROOT / "docs" / "config.md"
MARKER = "<!-- from here on written by: python -m benchmarks.docs.config_page -->\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), command_line._parser()), encoding="utf-8")
    print(PAGE)
    return 0


def rendered(text: str, parser: argparse.ArgumentParser) -> str:
    """The page with everything behind its marker made anew.

    Raises:
        ValueError: If the marker is missing.
    """
    own, marker, _ = text.partition(MARKER)
    if not marker:
        raise ValueError(f"the page of the configuration needs the line {MARKER.strip()!r}")
    return own + MARKER + "\n".join(_tables(all_keys(parser)))


def _tables(keys: dict[tuple[str, str], Key]) -> Iterator[str]:
    """A table for each section, then those of keys and flags that are answered with a sentence."""
    acting = [key for key in keys.values() if key.way not in ("idle", "absent")]
    for section in dict.fromkeys(key.section for key in acting):
        yield f"\n## {f'[{section}]' if section else 'Above all sections'}\n"
        yield "| key | such as | if not given | what it is | flag |\n|---|---|---|---|---|"
        yield from (_row(key) for key in acting if key.section == section)
    yield "\n## Keys that are answered\n"
    yield "Those of llm-dit that have no meaning on MAX are answered with one line on stderr; those of what is not"
    yield "built are refused where they ask for it, and left aside with a line where they only say how.\n"
    yield "| key | what is said |\n|---|---|"
    for key in (each for each in keys.values() if each.way in ("idle", "absent") or each.others):
        said = key.sentence or f"[{key.section}] is left aside: {key.help}"
        yield f"| `{key.spelled}` | {_escaped(said)} |"
    yield "\n## Flags that are answered\n"
    yield "| flag | what becomes of it | what is said |\n|---|---|---|"
    yield from (f"| `{flag}` | {fate} | {_escaped(said)} |" for flag, fate, said in OTHERS)
    yield ""


def _row(key: Key) -> str:
    usual = f"`{key.default}`" if key.default else ""
    flag = FLAGS.names.get(key.target, "") if key.way == "field" else ""
    flag = "--" + key.target.replace("_", "-") if key.way == "server" else flag
    cells = (f"`{key.name}`", f"`{example_of(key)}`", usual, _escaped(key.help), f"`{flag}`" if flag else "")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
