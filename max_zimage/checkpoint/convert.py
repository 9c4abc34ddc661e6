"""Rewrites a checkpoint: any layout that is read into one of those that are written, with other types if asked.

    input -> tensors -> transforms (dequantized, LoRAs added, in float32) -> named, cut and stored anew -> files

Everything that is wrong with what is asked for is said before a number is read.

References: layouts and types as named in `max_zimage.checkpoint.writers.layouts`.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from max_zimage import embedded, progress
from max_zimage.checkpoint.adapters import Adapter, added, open_adapter
from max_zimage.checkpoint.locate import COMPONENTS
from max_zimage.checkpoint.writers.encodings import FLOATS
from max_zimage.checkpoint.writers.inputs import Opened, check_component, open_input
from max_zimage.checkpoint.writers.layouts import LAYOUTS, Storing, usual_components
from max_zimage.checkpoint.writers.metadata import kept_metadata, written_metadata
from max_zimage.checkpoint.writers.output import (
    Component,
    Output,
    all_in_one,
    component_of,
    diffusers_folder,
    original_folder,
    single_file,
)
from max_zimage.checkpoint.writers.stream import write_weights
from max_zimage.checkpoint.writers.target import appearing, check_room, sync_tree, target_problems
from max_zimage.checkpoint.writers.wishes import SHARD_GB, Wish
from max_zimage.errors import CheckpointError
from max_zimage.host.words import counted

PathName = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written.

    Attributes:
        path: The file or folder.
        components: What it holds.
        files: Its weight files, as paths below the folder; empty for one file.
        nbytes: Bytes of all tensors.
        tensors: How many there are.
        stored: What they are stored as -> how many.
    """

    path: Path
    components: tuple[str, ...]
    files: tuple[str, ...]
    nbytes: int
    tensors: int
    stored: Mapping[str, int]


def convert(
    source: PathName | None,
    output: PathName,
    *,
    layout: str,
    type: str | None = None,
    components: Sequence[str] = (),
    loras: Sequence[tuple[PathName, float]] = (),
    configs: PathName | None = None,
    shift: float | None = None,
    keep_refiners: bool = False,
    shard_gb: float = SHARD_GB,
    overwrite: bool = False,
) -> Conversion:
    """Write a checkpoint in another layout, with other types, or with LoRAs in its weights.

    Memory holds a piece of one tensor at a time. The output appears when it is complete.

    Args:
        source: A folder in the diffusers layout, a hub id, a weight file, or the index of several; None is the embedded
            model.
        output: The file or folder that is written.
        layout: "diffusers": a folder. "original": the names of the original authors and of ComfyUI, one file for a
            component; an output that does not end in .safetensors is a folder of such files. "all-in-one": all
            components in one file, as ComfyUI's checkpoints. "gguf": one component.
        type: One of `writers.encodings.TYPES`; None keeps what every tensor is stored as, and makes bfloat16 of
            quantized ones.
        components: Of text_encoder, transformer and vae; by default all that are there, for GGUF the transformer.
        loras: LoRA files with their scales, added to the weights in float32 before these are rounded.
        configs: Where `source` is a weight file, a model to take configurations, tokenizer and scheduler from. Without
            it they are those of the published models, which have no tokenizer with them.
        shift: Of the scheduler, for a whole diffusers folder without `configs`: 3 for Turbo, 6 for the base model.
        keep_refiners: Whether quantized types leave the transformer's refiners out.
        shard_gb: Most 10^9 bytes of tensors in a file of a diffusers folder.
        overwrite: Whether an output that is there is replaced.

    Returns:
        What was written.

    Raises:
        CheckpointError: If the input cannot be read, the output cannot be made of it, is there already, or does not fit
            on the disk; or later, if numbers cannot be stored in the type.
        OSError: If a file cannot be read or written.
    """
    wish = Wish(
        output=Path(output).expanduser(),
        layout=layout,
        type=type,
        components=tuple(components),
        loras=tuple((Path(path), scale) for path, scale in loras),
        shift=shift,
        keep_refiners=keep_refiners,
        shard_gb=shard_gb,
        overwrite=overwrite,
    )
    wish.check()
    given = _path_or_id(embedded.PATH if source is None else source)
    opened = open_input(given, None if configs is None else _path_or_id(configs), wish.components)
    return _converted(wish, opened, Path(given).name)


def _converted(wish: Wish, opened: Opened, name: str) -> Conversion:
    chosen = wish.components or usual_components(wish.layout, frozenset(opened.sources))
    _check_together(wish, opened, chosen)
    adapters = _adapters(wish, opened, chosen)
    parts = _parts(wish, opened, chosen, name, adapters)
    made = _output(wish, opened, parts)
    check_room(wish.output, made.nbytes)
    _note(wish, opened, chosen, parts)
    with appearing(wish.output, folder=made.folder, overwrite=wish.overwrite) as scratch:
        _write(made, scratch, wish.output.name)
    items = [item for file in made.weights for item in file.items]
    return Conversion(
        path=wish.output,
        components=chosen,
        files=tuple(file.path for file in made.weights if file.path),
        nbytes=sum(item.nbytes for item in items),
        tensors=len(items),
        stored=dict(Counter(item.word for item in items)),
    )


def _path_or_id(given: PathName) -> str | Path:
    return given if isinstance(given, str) else Path(given)


def _check_together(wish: Wish, opened: Opened, chosen: Sequence[str]) -> None:
    """What can only be said once the input is known."""
    folder = wish.is_folder
    read = [*opened.paths, *(path for path, _ in wish.loras)]
    problems = target_problems(wish.output, folder=folder, overwrite=wish.overwrite, read=read)
    if absent := [
        name for name in LAYOUTS[wish.layout].names if name in wish.components and name not in opened.sources
    ]:
        problems.append(f"the input holds no {' and no '.join(absent)}")
    if not folder and wish.layout != "all-in-one" and len(chosen) > 1:
        problems.append(
            f"{wish.output.name} is one file, and the input holds {', '.join(chosen)}; name one with --component"
            + (", or a folder as the output" if LAYOUTS[wish.layout].folder else "")
        )
    needs_shift = wish.layout == "diffusers" and set(chosen) == set(COMPONENTS) and opened.directory is None
    if needs_shift and wish.shift is None:
        problems.append(
            "the input has no scheduler, and a diffusers folder needs one: say --shift 3 for Turbo or 6 for the base "
            "model, or name a model to take it from with --configs"
        )
    if wish.shift is not None and not needs_shift:
        problems.append(
            "--shift belongs to a whole diffusers folder made of weight files without --configs; leave it out"
        )
    if problems:
        raise CheckpointError("\n".join(problems))


def _adapters(wish: Wish, opened: Opened, chosen: Sequence[str]) -> list[tuple[Adapter, float]]:
    """The LoRAs, opened and checked."""
    adapters, problems = [], []
    for path, scale in wish.loras:
        try:
            with warnings.catch_warnings():  # its notes are told below, where the command line shows them too
                warnings.simplefilter("ignore")
                adapter = open_adapter(path, opened.specs)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for text in adapter.notes:
            progress.note(f"{path}: {text}")
        if not any(adapter.modules.get(name) for name in chosen):
            problems.append(
                f"{path} changes the {' and the '.join(adapter.modules)}, and {', '.join(chosen)} is written"
            )
        adapters.append((adapter, scale))
    if problems:
        raise CheckpointError("\n".join(problems))
    return adapters


def _parts(
    wish: Wish, opened: Opened, chosen: Sequence[str], name: str, adapters: Sequence[tuple[Adapter, float]]
) -> dict[str, Component]:
    """All components, so that one message names everything that is wrong."""
    parts, problems = {}, []
    done: dict[str, object] = {"input": name, "layout": wish.layout, "type": wish.type or "as it was"}
    if adapters:
        done["loras"] = [{"name": each.name, "scale": scale, "sha256": each.digest} for each, scale in adapters]
    for component in chosen:
        storing = Storing(component, wish.layout, wish.type, wish.keep_refiners)
        try:
            checked = check_component(opened, component, [added(adapters, component)] if adapters else [])
            metadata = written_metadata(kept_metadata(opened.sources[component]), done, gguf=wish.layout == "gguf")
            parts[component] = component_of(opened, checked, storing, metadata)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    return parts


def _output(wish: Wish, opened: Opened, parts: Mapping[str, Component]) -> Output:
    if wish.layout == "diffusers":
        return diffusers_folder(opened, parts, shard_bytes=int(wish.shard_gb * 1e9), shift=wish.shift)
    if wish.layout == "all-in-one":
        return all_in_one(parts)
    if wish.is_folder:
        return original_folder(parts)
    ((component, part),) = parts.items()
    return single_file(component, part, opened, gguf=wish.layout == "gguf")


def _note(wish: Wish, opened: Opened, chosen: Sequence[str], parts: Mapping[str, Component]) -> None:
    """What is worth a line before the work begins."""
    for name in chosen:
        words = parts[name].quantized
        if words and (wish.type is None or wish.type in FLOATS):
            progress.note(
                f"the {name} is quantized ({', '.join(words)}); what its numbers have lost does not come back by "
                f"storing them as {wish.type or 'bfloat16'}"
            )
        if left := parts[name].left:
            which = counted(len(left), "matrix stays", "matrices stay")
            progress.note(f"{which} float32, whose rows are no multiples of 32: {left[0]} ...")
    whole = wish.layout == "diffusers" and set(chosen) == set(COMPONENTS)
    if whole and (opened.directory is None or not (opened.directory / "tokenizer").is_dir()):
        progress.note(
            "no tokenizer was there to copy; put the folder tokenizer of the published model beside the others"
        )


def _write(made: Output, root: Path, name: str) -> None:
    for path, text in made.texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    for path, file in made.copies.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, root / path)
    write_weights(root, made.weights, name)
    if made.folder:
        sync_tree(root)
