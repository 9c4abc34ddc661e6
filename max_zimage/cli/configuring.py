"""Arguments of a command, with what a configuration file and the environment say of those that no flag does.

code's defaults < file < environment < the picture of --from < flags
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from max_zimage.cli.errors import BadInput, checking
from max_zimage.cli.model_flags import DEFAULT_CACHE
from max_zimage.cli.other_flags import answer, keyed
from max_zimage.cli.server_keys import server_keys
from max_zimage.errors import RequestError
from max_zimage.request.configuration.configuration import Configuration, read_configuration
from max_zimage.request.configuration.settling import Setting
from max_zimage.request.configuration.values import PLACES, QUANTIZATIONS, TOKENS_KEPT, giving_way

STARTS = {
    "model": "model",
    "device": "device",
    "dtype": "dtype",
    "weight_path": "weight_path",
    "quantize": "quantize",
    "templates_dir": "templates_dir",
    "embedding_cache_bytes": "embedding_cache",
    "no_metadata": "no_metadata",
    "attention_backend": "attention_backend",
    **{name: name for name in PLACES},
}
"""Argument of loading -> where argparse leaves its flag."""
SPELLINGS = {"quantization": "quantize", "model_path": "model", "cache_size": "embedding_cache"}
OF_PICTURE = frozenset({"model", "dtype", "weight_path", "quantize", "attention_backend"})
"""Those that a picture of --from says, too."""
_ONE_SETTING = ("placement", "cpu_offload")
"""Two ways to say which components stay in memory."""
_ENCODING = frozenset(STARTS) - frozenset(PLACES) | {"encoder_device"}
_TAKEN: tuple[tuple[str, frozenset[str]], ...] = (
    ("component", frozenset({"device", "dtype"})),
    ("memory", frozenset({"model", "dtype", "placement", "quantize"})),
    ("attention", frozenset({"model", "device", "dtype"})),
    ("sweep", frozenset(STARTS) - {"dtype", "quantize", "embedding_cache_bytes", "attention_backend"}),
    ("encoder_only", _ENCODING),
    ("latents_out", frozenset(STARTS) - {"no_metadata"}),
)
"""Flags under which a command does something else -> what of a configuration has a meaning then.

What has none is no mistake in a file that other commands read, too, as it would be on the command line.
"""


def configure(arguments: argparse.Namespace, given: Collection[str], serve: argparse.ArgumentParser) -> None:
    """Answer flags that are llm-dit's alone, read the configuration, and put it beneath the flags.

    Args:
        arguments: All of them; gets `configuration`, in which is left what is no flag of the command, and `given`.
        given: Those that were given.
        serve: The parser of `max-zimage serve`, whose flags are keys.

    Raises:
        BadInput: With all that is wrong with the file and the environment, or with these flags.
    """
    lines = answer(arguments)
    arguments.given = frozenset(given)
    _join(arguments, given)
    configuration = read(arguments, serve, keyed(arguments))
    lines += configuration.settled.notes
    if not getattr(arguments, "quiet", False):
        for line in lines:
            print(f"max-zimage: {line}", file=sys.stderr)
    source = getattr(arguments, "source", None)
    repeats = source is not None and not is_of_another_tool(source)
    start = _taken(arguments, given, configuration.settled.start)
    taken = {*given} | {name for spelling, name in SPELLINGS.items() if spelling in given}
    for name, destination in STARTS.items():
        if name == "cpu_offload" or not hasattr(arguments, destination):
            continue  # what is loaded takes it from the configuration
        setting = start.pop(name, None)
        if setting is not None and destination not in taken and not (repeats and destination in OF_PICTURE):
            setattr(arguments, destination, setting.value)
    fields = {} if repeats else dict(configuration.settled.fields)
    if repeats or "lora" in given:
        start.pop("loras", None)
    if arguments.command == "serve":
        _serve(arguments, given, configuration)
    arguments.configuration = replace(configuration, settled=replace(configuration.settled, start=start, fields=fields))


def is_of_another_tool(source: str) -> bool:
    """Whether a picture of --from names no model, dtype or weights, and so leaves them to what is configured.

    One that cannot be read is none; that is told where it is used.
    """
    from max_zimage.images.errors import ImageFileError
    from max_zimage.request.other_tools import OtherParameters, read_any

    try:
        return isinstance(read_any(Path(source)), OtherParameters)
    except RequestError:  # of what has no counterpart, for which flags may stand
        return True
    except ImageFileError:
        return False


def _taken(
    arguments: argparse.Namespace, given: Collection[str], configured: Mapping[str, Setting]
) -> dict[str, Setting]:
    """What is configured of loading, without what has no meaning under these flags, or is said by them."""
    start = dict(configured)
    for flag, names in _TAKEN:
        if getattr(arguments, flag, None) not in (None, False):
            start = {name: setting for name, setting in start.items() if name in names}
    if any(name in given for name in _ONE_SETTING):
        start = {name: setting for name, setting in start.items() if name not in _ONE_SETTING}
    gone = giving_way({name: value for name, value in vars(arguments).items() if name in given})
    start = {name: setting for name, setting in start.items() if name not in gone}
    encodes = arguments.command == "encode" or getattr(arguments, "encoder_only", False)
    if encodes and "device" in given:  # there is but one component, and a flag comes first
        start.pop("encoder_device", None)
    return start


def read(
    arguments: argparse.Namespace, serve: argparse.ArgumentParser, flags: Mapping[str, object] | None = None
) -> Configuration:
    """The configuration that flags and environment name.

    Args:
        arguments: Have --config and --profile.
        serve: The parser of `max-zimage serve`.
        flags: Of keys -> their values, from `keyed`.

    Raises:
        BadInput: With all that is wrong.
    """
    names = arguments.config, arguments.chosen_profile
    with checking():
        return read_configuration(*names, server=server_keys(serve), flags=flags or {})


def _serve(arguments: argparse.Namespace, given: Collection[str], configuration: Configuration) -> None:
    for name, setting in configuration.settled.server.items():
        if name not in given:
            setattr(arguments, name, setting.value)
    cache = configuration.settled.fields.get("step_cache")
    if cache is not None and "step_cache" not in given:
        arguments.step_cache = cache.value


def _join(arguments: argparse.Namespace, given: Collection[str]) -> None:
    """Take two spellings of one thing together.

    Raises:
        BadInput: If both are given, and do not go together.
    """
    if getattr(arguments, "model_path", None) is not None:
        if arguments.model is not None:
            raise BadInput("MODEL and --model name the same; leave one out")
        arguments.model = arguments.model_path
    storage = QUANTIZATIONS.get(getattr(arguments, "quantization", None) or "none")
    if storage:
        arguments.quantize = ",".join(filter(None, [arguments.quantize, f"text_encoder={storage}"]))
    if "quantization" in given and not storage and arguments.quantize is None:
        arguments.quantize = ""
    if getattr(arguments, "cache_size", None) is None:
        return
    if arguments.command != "serve" and "embedding_cache" not in given:
        raise BadInput("--cache-size would do nothing; give --embedding-cache too, or leave it out")
    if "embedding_cache" in given and arguments.embedding_cache != DEFAULT_CACHE:
        raise BadInput("--cache-size and a size behind --embedding-cache are one setting; leave one out")
    arguments.embedding_cache = arguments.cache_size * TOKENS_KEPT
