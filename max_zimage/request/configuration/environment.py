"""What variables of the environment say in the place of keys: `MAX_ZIMAGE_SECTION_KEY`.

Reference: reference/api.md.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping

from max_zimage.request.configuration.key import Key
from max_zimage.request.configuration.keys import SECTIONS
from max_zimage.request.configuration.profiles import Keys, Said

OTHERS = ("MAX_ZIMAGE_SERVER_PROCESS", "MAX_ZIMAGE_ENHANCER_KEY")
"""Variables that are no keys, though they begin as those of a section do."""


def of_environment(environment: Mapping[str, str], keys: Keys, problems: list[str]) -> Iterator[Said]:
    """The keys that variables give.

    Args:
        environment: Names and texts.
        keys: The keys there are; without those of `[server]`, its variables are left aside.
        problems: Gets variables of a section that has no such key.
    """
    known = {key.variable: key for key in keys.values()}
    sections = {section for section, _ in keys}
    begins = tuple(f"MAX_ZIMAGE_{name.upper()}_" for name in SECTIONS if name in sections and name != "qwen_image")
    for name, text in sorted(environment.items()):
        if name in known:
            yield Said(key=known[name], value=value_of(known[name], text), origin=name)
        elif name.startswith(begins) and name not in OTHERS:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            problems.append(f"{name} stands for no key" + (f"; the nearest is {near[0]}" if near else ""))


def value_of(key: Key, text: str) -> object:
    """What the text of a variable is as a value of TOML: itself where it is none, or where a text is wanted.

    >>> key = Key(section="slg", name="scale", way="field", types=(float,))
    >>> value_of(key, "2.5"), value_of(key, "much")
    (2.5, 'much')
    """
    if key.types == (str,) or (not key.types and not text.strip()):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.split(",") if key.types == (list,) and text else text
