"""The keys of a configuration file for docs/config.md, from their table: `python -m benchmarks.docs.config_page`.

The page's own words stand before the marker, the tables behind it. A test holds the page equal to the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.docs.written import WrittenPage, cell
from max_zimage.cli.config import all_keys
from max_zimage.cli.config_example import example_of
from max_zimage.cli.other_flags import OTHERS
from max_zimage.request.configuration.key import Key
from max_zimage.request.fields import FLAGS


def _tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table for each section, then those of keys and flags that are answered with a sentence."""
    keys = all_keys(parser)
    acting = [key for key in keys.values() if key.way not in ("idle", "absent")]
    for section in dict.fromkeys(key.section for key in acting):
        yield f"## {f'[{section}]' if section else 'Above all sections'}\n"
        yield "| key | such as | if not given | what it is | flag |\n|---|---|---|---|---|"
        yield from (_row(key) for key in acting if key.section == section)
        yield ""
    yield "## Keys that are answered\n"
    yield "Those of llm-dit that have no meaning on MAX are answered with one line on stderr; those of what is not"
    yield "built are refused where they ask for it, and left aside with a line where they only say how.\n"
    yield "| key | what is said |\n|---|---|"
    for key in (each for each in keys.values() if each.way in ("idle", "absent") or each.others):
        yield f"| `{key.spelled}` | {cell(key.sentence)} |"
    yield "\n## Flags that are answered\n"
    yield "| flag | what becomes of it | what is said |\n|---|---|---|"
    yield from (f"| `{flag}` | {fate} | {cell(said)} |" for flag, fate, said in OTHERS)
    yield ""


def _row(key: Key) -> str:
    usual = f"`{key.default}`" if key.default else ""
    flag = FLAGS.names.get(key.target, "") if key.way == "field" else key.flag
    flag = "--" + key.target.replace("_", "-") if key.way == "server" else flag
    cells = (f"`{key.name}`", f"`{example_of(key)}`", usual, cell(key.help), f"`{flag}`" if flag else "")
    return "| " + " | ".join(cells) + " |"


PAGE = WrittenPage(file="config.md", module="benchmarks.docs.config_page", lines=_tables)

if __name__ == "__main__":
    raise SystemExit(PAGE.write())
