"""The keys of `[server]`, made from the flags of `max-zimage serve`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from max_zimage.request.configuration.key import Key, shown
from max_zimage.request.configuration.values import PLACES

ELSEWHERE = frozenset(
    {
        "help", "model", "model_path", "device", "dtype", "quantize", "quantization", "weight_path", "templates_dir",
        "attention_backend", "step_cache", "embedding_cache", "cache_size", "config", "chosen_profile", "debug",
        "enhancer", "enhancer_template", *PLACES,
    }
)  # fmt: skip
"""What flags leave under names that have a key in another section, or none."""


def server_keys(serve: argparse.ArgumentParser) -> dict[str, Key]:
    """Name -> key, for each flag of a server that has none elsewhere.

    Args:
        serve: The command's parser.
    """
    actions = [each for each in serve._actions if each.dest not in ELSEWHERE and each.help != argparse.SUPPRESS]
    return {each.dest: _key(each) for each in actions}


def _key(action: argparse.Action) -> Key:
    read: Callable[[str], Any] = action.type if callable(action.type) else str
    if action.nargs == 0:
        types: tuple[type, ...] = (bool,)
    elif isinstance(action, argparse._AppendAction):
        types = (list,)
    else:
        types = {"int": (int,), "at_least_one": (int,), "_seconds": (float,), "share": (float,)}.get(
            getattr(read, "__name__", ""), (str, int) if read is not str else (str,)
        )
    default = "" if action.default in (None, []) else shown(action.default).strip("'")
    return Key(
        section="server",
        name=action.dest,
        way="server",
        target=action.dest,
        types=types,
        default=default,
        convert=None if types == (bool,) else lambda value: _converted(read, value),
        help=action.help or "",
    )


def _converted(read: Callable[[str], Any], value: object) -> object:
    """What the flag would make of it.

    Raises:
        ValueError: If it would refuse it.
    """
    if isinstance(value, list):
        return [_converted(read, each) for each in value]
    try:
        return read(str(value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from error
