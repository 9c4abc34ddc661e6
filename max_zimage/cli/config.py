"""`max-zimage config`: what is in force and where it comes from, and an example of a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from max_zimage.cli.config_example import example_text
from max_zimage.cli.configuring import OF_PICTURE, SPELLINGS, STARTS, configure, read
from max_zimage.cli.errors import checking
from max_zimage.cli.given import command_of, given_by
from max_zimage.cli.other_flags import keyed
from max_zimage.cli.server_keys import server_keys
from max_zimage.request.configuration.configuration import Configuration, default_file
from max_zimage.request.configuration.key import Key
from max_zimage.request.configuration.keys import keys_of
from max_zimage.request.configuration.settling import Setting
from max_zimage.request.fields import ROWS
from max_zimage.request.other_tools import OtherParameters, read_any

CANONICAL = {
    "model": ("", "model_path"),
    "templates_dir": ("", "templates_dir"),
    "weight_path": ("", "weight_path"),
    "quantize": ("", "quantize"),
    "device": ("pipeline", "device"),
    "dtype": ("pipeline", "torch_dtype"),
    "embedding_cache_bytes": ("pytorch", "embedding_cache"),
    "loras": ("lora", "paths"),
    "no_metadata": ("generation", "no_metadata"),
    "attention_backend": ("pytorch", "attention_backend"),
    "placement": ("pipeline", "placement"),
    "max_memory": ("pipeline", "max_memory"),
    "cpu_offload": ("encoder", "cpu_offload"),
    "encoder_device": ("encoder", "device"),
    "devices": ("pipeline", "devices"),
    "split": ("pipeline", "split"),
    "dit_device": ("pipeline", "dit_device"),
    "vae_device": ("pipeline", "vae_device"),
}
"""Argument of loading -> the key under which it is shown."""
_ENHANCER = {"model": "enhancer", "template": "enhancer_template"}
"""Key -> the flag of a server that says it."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One line of what is in force.

    Attributes:
        section: Of the key.
        key: Its name.
        value: In force; None where the checkpoint decides.
        origin: "default", a file with a line, a variable, a picture, or a flag.
    """

    section: str
    key: str
    value: Any
    origin: str


def example(parser: Callable[[], argparse.ArgumentParser]) -> int:
    """Print a file with all keys, as comments."""
    print(example_text(all_keys(parser())), end="")
    return 0


def show(arguments: argparse.Namespace, words: Sequence[str], parser: Callable[[], argparse.ArgumentParser]) -> int:
    """Print what is in force.

    Args:
        arguments: Of the command.
        words: A command whose flags count, too, and these; empty for none.
        parser: Makes the parser of all commands.

    Raises:
        BadInput: If the configuration does not do.
    """
    serve = command_of(parser(), "serve")
    flags: Mapping[str, Any] = {}
    of_keys: Mapping[str, object] = {}
    saved: Mapping[str, Any] = {}
    if words:
        named = [*(["--config", arguments.config] if arguments.config else [])]
        named += ["--profile", arguments.chosen_profile] if arguments.chosen_profile else []
        command = parser().parse_args([*words, *named])
        given = given_by(parser(), [*words, *named])
        configure(command, given, serve)  # tells what does not go together
        flags, of_keys = values_given(command), keyed(command)
        arguments.config, arguments.chosen_profile = command.config, command.chosen_profile
        saved = {} if flags.get("source") is None else _parameters(flags["source"], flags)
    configuration = read(arguments, serve, of_keys)
    lines = list(in_force(configuration, flags, saved))
    if arguments.json:
        print(json.dumps(_facts(configuration, lines), default=str))
        return 0
    _print(configuration, lines)
    return 0


def _parameters(source: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture says: of a request's fields, and of what a model is loaded with if this program drew it."""
    said = {name for name, row in ROWS.items() if row.flag and row.flag.destination in flags}
    with checking():
        found = read_any(Path(source), said)
    if isinstance(found, OtherParameters):
        return found.values
    kept = {name: getattr(found, name) for name, row in ROWS.items() if row.kept is not None}
    return kept | {name: getattr(found, "weight_paths" if name == "weight_path" else name) for name in OF_PICTURE}


def values_given(command: argparse.Namespace) -> dict[str, Any]:
    """What the flags of a configured command say, each by its usual spelling."""
    names = {SPELLINGS.get(name, name) for name in command.given}
    return {name: getattr(command, name) for name in names}


def in_force(
    configuration: Configuration, flags: Mapping[str, Any], saved: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Shown]:
    """What is in force and where it was said, key by key.

    Args:
        configuration: The file and the environment.
        flags: From `values_given`.
        saved: What the picture of --from says, by the names of a request's fields.
    """
    settled, source = configuration.settled, flags.get("source")
    for name, (section, key) in CANONICAL.items():
        flag = STARTS.get(name, "lora")
        known = saved.get(flag) if flag in OF_PICTURE else None
        usual = configuration.keys[section, key].default or None
        yield _line(section, key, flags, flag, (known, source), settled.start.get(name), usual)
    for (section, key), each in configuration.keys.items():
        if each.way == "field" and section == "generation" and each.target == key:
            row = ROWS[key]
            destination = row.flag.destination if row.flag else ""
            yield _line(
                section,
                key,
                flags,
                destination,
                (saved.get(key), source),
                settled.fields.get(key),
                each.default or None,
            )
        elif section == "enhancer":
            said = _said_of(each, configuration)
            yield _line(section, key, flags, _ENHANCER.get(key, ""), (None, None), said, each.default or None)
        elif each.way == "server":
            yield _line(section, key, flags, key, (None, None), settled.server.get(key), each.default or None)


def _said_of(key: Key, configuration: Configuration) -> Setting | None:
    """What is said of a key's target, by whichever of its spellings."""
    said = configuration.settled.said.items()
    return next((each for place, each in said if configuration.keys[place].target == key.target), None)


def _line(
    section: str,
    key: str,
    flags: Mapping[str, Any],
    destination: str,
    kept: tuple[Any, str | None],
    setting: Setting | None,
    usual: object,
) -> Shown:
    if destination in flags:
        flag = "--" + destination.replace("_", "-")
        return Shown(section=section, key=key, value=flags[destination], origin=f"flag {flag}")
    if kept[0] is not None:
        return Shown(section=section, key=key, value=kept[0], origin=f"picture {kept[1]}")
    if setting is not None:
        return Shown(section=section, key=key, value=setting.value, origin=setting.name)
    return Shown(section=section, key=key, value=usual, origin="default")


def _facts(configuration: Configuration, lines: Sequence[Shown]) -> dict[str, Any]:
    return {
        "file": None if configuration.file is None else str(configuration.file),
        "profile": configuration.profile,
        "settings": [asdict(line) for line in lines],
        "notes": list(configuration.settled.notes),
    }


def _print(configuration: Configuration, lines: Sequence[Shown]) -> None:
    where = configuration.file or f"none; it would be {default_file()}"
    print(f"configuration file: {where}\nprofile: {configuration.profile}")
    section = None
    for line in lines:
        if line.section != section:
            section = line.section
            print(f"\n[{section}]" if section else "")
        value = written(line.value)
        print(f"{line.key:24} {value:28} {line.origin}")
    for note in configuration.settled.notes:
        print(f"max-zimage: {note}", file=sys.stderr)


def written(value: object) -> str:
    """A value as people read it; "-" where the checkpoint decides."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float, str)) else json.dumps(value, default=str)


def all_keys(parser: argparse.ArgumentParser) -> dict[tuple[str, str], Key]:
    """All keys, those of a server included.

    Args:
        parser: Of all commands.
    """
    return keys_of(server_keys(command_of(parser, "serve")))
