"""The adapters that pictures on the command line are drawn with, and those that a picture to be repeated needs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from max_zimage.errors import RequestError
from max_zimage.request.loras import SUFFIX, digest_of
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.other_tools import OtherParameters

Given = str | tuple[str, float]
"""A file as `--lora` names it, or a file and a scale."""


def wanted_loras(arguments: argparse.Namespace, saved: GenerationParameters | None) -> Sequence[Any] | None:
    """The adapters as a request takes them: those of the picture of --from, where it was drawn with some.

    Their files are looked for beside that picture and in this folder, by their names, unless --lora names them; a scale
    there takes the place of the picture's.

    Raises:
        RequestError: If one is missing, is another file, or is none of the picture's.
    """
    given: list[Given] | None = arguments.lora
    kept: Sequence[dict[str, Any]] = () if saved is None else saved.loras
    if not kept:
        return given
    if given is None:
        return [(str(_beside(arguments.source, each)), each["scale"]) for each in kept]
    files = {_file(each): _digest(_file(each)) for each in given}
    wanted = {each["digest"]: each for each in kept}
    for file, digest in files.items():
        if digest not in wanted:
            raise RequestError(
                f"--lora {file} is none of the adapters that {arguments.source} was drawn with, which are "
                f"{', '.join(map(_named, kept))}; name those files, or leave out --from and give the prompt and the "
                "seed yourself"
            )
    if missing := [each for each in kept if each["digest"] not in files.values()]:
        raise RequestError(_asking(arguments.source, missing[0]))
    if any(isinstance(each, tuple) for each in given):
        scales = {digest: each["scale"] for digest, each in wanted.items()}
        return [each if isinstance(each, tuple) else (each, scales[files[each]]) for each in given]
    paths = {digest: file for file, digest in files.items()}
    return [(paths[each["digest"]], each["scale"]) for each in kept]


def found_loras(arguments: argparse.Namespace, other: OtherParameters) -> Sequence[Any] | None:
    """The adapters that a picture of another tool names, as a request takes them; --lora takes their place.

    Raises:
        RequestError: If one is neither beside the picture nor in this folder.
    """
    given: list[Given] | None = arguments.lora
    if given is not None or not other.loras:
        return given
    found: list[Given] = []
    for each in other.loras:
        name = each.name + SUFFIX
        places = [folder / name for folder in (Path(arguments.source).parent, Path())]
        path = next((place for place in places if place.is_file()), None)
        if path is None or Path(name).name != name:
            raise RequestError(
                f"{arguments.source} was drawn with the adapter {each.name} at {each.scale:g}; name its file with "
                f"--lora, or put {name} beside the picture"
            )
        found.append((str(path), each.scale))
    return found


def _beside(source: str, wanted: dict[str, Any]) -> Path:
    """The file of an adapter that a picture was drawn with, where it lies beside the picture or in this folder."""
    places = [folder / wanted["name"] for folder in (Path(source).parent, Path())]
    there = [path for path in places if path.exists()]
    for path in there:
        with suppress(OSError):  # it cannot be read, or is a folder of something else
            if digest_of(path) == wanted["digest"]:
                return path
    others = f"; {there[0]} is another one" if there else ""
    raise RequestError(_asking(source, wanted) + others)


def _asking(source: str, wanted: dict[str, Any]) -> str:
    return (
        f"{source} was drawn with the adapter {_named(wanted)}, which is needed again; name its file with --lora, or "
        "put it beside the picture"
    )


def _named(wanted: dict[str, Any]) -> str:
    return f"{wanted['name']} ({wanted['digest'][:19]}...)"


def _file(given: Given) -> str:
    return given if isinstance(given, str) else given[0]


def _digest(file: str) -> str:
    try:
        return digest_of(Path(file))
    except OSError as error:
        raise RequestError(f"--lora {file} cannot be read: {error.strerror or error}") from error
