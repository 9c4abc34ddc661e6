"""Flags of llm-dit that do nothing here, and those of what is not built: each is answered with its sentence.

They come from the tables of `max_zimage.request.configuration`, so that files and flags say the same. No help shows
them; docs/config.md does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from max_zimage.cli.errors import BadInput
from max_zimage.request.configuration.absent import ABSENT, QWEN_IMAGE
from max_zimage.request.configuration.idle import ATTENTION as ATTENTION_LINE
from max_zimage.request.configuration.idle import IDLE, said_of
from max_zimage.request.configuration.keys import keys_of
from max_zimage.request.configuration.values import OTHER_ATTENTION

ENCODER_SERVER = "`serve` answers /v1/prompt-features beside pictures; there is no server of the text encoder alone"
NO_ENHANCER = "prompts are written out by generate, batch and serve, see docs/enhance.md; leave it out"
ENHANCING = ("generate", "batch", "serve")
EMPTY_THOUGHTS = "an empty block of thoughts is not written here; give --thinking-content, or leave it out"

OTHERS: tuple[tuple[str, str, str], ...] = (
    *((each.flag, "a line", said_of(each.flag, each.line)) for each in IDLE if each.flag),
    *((flag, "refused", part.sentence) for part in ABSENT for flag in part.flags),
    *(
        (f"--attention-backend {each}", "a line", said_of(f"--attention-backend {each}", ATTENTION_LINE))
        for each in OTHER_ATTENTION
    ),
    ("--model-type qwenimage", "refused", QWEN_IMAGE),
    ("--force-think-block", "refused without --thinking-content", EMPTY_THOUGHTS),
    ("serve --encoder-only", "refused", ENCODER_SERVER),
)
"""Flag, what becomes of it, what is said: all of them, for docs/config.md and its test."""


_API_URL = "--rewriter-api-url"
KEYED = tuple(key for key in keys_of().values() if key.flag)
"""Keys of the configuration with flags of their own, llm-dit's of its rewriter."""


def add_others(parser: argparse.ArgumentParser) -> None:
    """Add them all to a command."""
    for each in IDLE:
        if each.flag:
            _hidden(parser, each.flag, **({"type": each.type} if each.type is not bool else {"action": "store_true"}))
    for part in ABSENT:
        for flag in part.flags:
            _hidden(parser, flag, nargs="?", const=True)
    for key in KEYED:
        (kind,) = key.types
        _hidden(parser, key.flag, **({"action": "store_true"} if kind is bool else {"type": kind}))
    _hidden(parser, "--model-type", choices=("zimage", "qwenimage"))
    _hidden(parser, "--force-think-block", action="store_true")


def answer(arguments: argparse.Namespace) -> list[str]:
    """The lines that answer flags without a meaning; attention by a name of llm-dit's becomes auto.

    Raises:
        BadInput: With all flags that ask for what there is not.
    """
    refused = list(_refused(arguments))
    if refused:
        many = "\n- ".join([f"{len(refused)} flags ask for what there is not:", *refused])
        raise BadInput(refused[0] if len(refused) == 1 else many)
    given = [(each, _value(arguments, each.flag)) for each in IDLE if each.flag]
    asked = [each for each, value in given if value is True or value not in (None, False, each.off)]
    lines = [said_of(each.flag, each.line) for each in asked]
    if getattr(arguments, "attention_backend", None) in OTHER_ATTENTION:
        lines.append(said_of(f"--attention-backend {arguments.attention_backend}", ATTENTION_LINE))
        arguments.attention_backend = "auto"
    return lines


def keyed(arguments: argparse.Namespace) -> dict[str, object]:
    """Flags of keys that are given -> their values.

    Args:
        arguments: Of a command.

    Raises:
        BadInput: If an enhancer is named in two ways.
    """
    named = next((name for name in ("enhance", "enhancer") if isinstance(_plain(arguments, name), str)), None)
    if named and _plain(arguments, named) and _value(arguments, _API_URL) is not None:
        raise BadInput(f"--{named} {_plain(arguments, named)} and {_API_URL} both name an enhancer; leave one out")
    found = {key.flag: _value(arguments, key.flag) for key in KEYED}
    return {flag: value for flag, value in found.items() if value is not None}


def _refused(arguments: argparse.Namespace) -> Iterator[str]:
    for part in ABSENT:
        for flag in part.flags:
            if _value(arguments, flag) is not None:
                yield f"{flag}: {part.sentence}"
    if arguments.command not in ENHANCING:
        yield from (f"{flag}: {NO_ENHANCER}" for flag in keyed(arguments))
    if _value(arguments, "--model-type") == "qwenimage":
        yield f"--model-type qwenimage: {QWEN_IMAGE}"
    if _value(arguments, "--force-think-block") and not getattr(arguments, "thinking_content", None):
        yield f"--force-think-block: {EMPTY_THOUGHTS}"
    if arguments.command == "serve" and _value(arguments, "--encoder-only"):
        yield f"--encoder-only: {ENCODER_SERVER}"


def _hidden(parser: argparse.ArgumentParser, flag: str, **options: object) -> None:
    if options.get("action") == "store_true":
        options["default"] = None
    parser.add_argument(flag, dest=_name(flag), help=argparse.SUPPRESS, **options)  # type: ignore[arg-type]


def _name(flag: str) -> str:
    return "other_" + flag.removeprefix("--").replace("-", "_")


def _plain(arguments: argparse.Namespace, name: str) -> object:
    return getattr(arguments, name, None)


def _value(arguments: argparse.Namespace, flag: str) -> object:
    return _plain(arguments, _name(flag))
