"""Arguments of a command, with what a configuration file and the environment say of those that no flag does.

code's defaults < file < environment < the picture of --from < flags
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from dataclasses import replace

from max_zimage.cli.errors import BadInput, checking
from max_zimage.cli.model_flags import DEFAULT_CACHE
from max_zimage.cli.other_flags import answer
from max_zimage.cli.server_keys import server_keys
from max_zimage.request.configuration.configuration import Configuration, read_configuration
from max_zimage.request.configuration.values import PLACES, QUANTIZATIONS, TOKENS_KEPT

STARTS = {
    "model": "model",
    "device": "device",
    "dtype": "dtype",
    "weight_path": "weight_path",
    "quantize": "quantize",
    "templates_dir": "templates_dir",
    "embedding_cache_bytes": "embedding_cache",
    **{name: name for name in PLACES},
}
"""Argument of loading -> where argparse leaves its flag."""
_SPELLINGS = {"quantization": "quantize", "model_path": "model", "cache_size": "embedding_cache"}
OF_PICTURE = frozenset({"model", "dtype", "weight_path", "quantize"})
"""Those that a picture of --from says, too."""


def configure(arguments: argparse.Namespace, given: Collection[str], serve: argparse.ArgumentParser) -> None:
    """Answer flags that are llm-dit's alone, read the configuration, and put it beneath the flags.

    Args:
        arguments: All of them; gets `configuration`, in which is left what is no flag of the command.
        given: Those that were given.
        serve: The parser of `max-zimage serve`, whose flags are keys.

    Raises:
        BadInput: With all that is wrong with the file and the environment, or with these flags.
    """
    lines = answer(arguments)
    _join(arguments, given)
    configuration = read(arguments, serve)
    lines += configuration.settled.notes
    if not getattr(arguments, "quiet", False):
        for line in lines:
            print(f"max-zimage: {line}", file=sys.stderr)
    repeats = getattr(arguments, "source", None) is not None
    start = dict(configuration.settled.start)
    if getattr(arguments, "component", None) is not None:  # which has neither weights of a checkpoint nor a request
        start = {name: setting for name, setting in start.items() if name in ("device", "dtype")}
    taken = {*given} | {name for spelling, name in _SPELLINGS.items() if spelling in given}
    for name, destination in STARTS.items():
        setting = start.pop(name, None)
        is_free = destination not in taken and not (repeats and destination in OF_PICTURE)
        if setting is not None and is_free and hasattr(arguments, destination):
            setattr(arguments, destination, setting.value)
    fields = {} if repeats else dict(configuration.settled.fields)
    if repeats or "lora" in given:
        start.pop("loras", None)
    if arguments.command == "serve":
        _serve(arguments, given, configuration)
    arguments.configuration = replace(configuration, settled=replace(configuration.settled, start=start, fields=fields))


def read(arguments: argparse.Namespace, serve: argparse.ArgumentParser) -> Configuration:
    """The configuration that flags and environment name.

    Raises:
        BadInput: With all that is wrong.
    """
    with checking():
        return read_configuration(arguments.config, arguments.chosen_profile, server=server_keys(serve))


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
            raise BadInput("MODEL and --model-path name the same; leave one out")
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
