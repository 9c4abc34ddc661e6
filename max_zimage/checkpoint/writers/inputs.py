"""What is converted: a folder, a hub id or weight files in any layout that is read, opened and checked.

Nothing but headers and configurations is read here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from max_zimage.checkpoint.config import ConfigError, ModelSpecs, model_specs
from max_zimage.checkpoint.expand import ParameterTable, text_encoder_names, transformer_names, vae_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.locate import (
    COMPONENTS,
    CONFIG_FILES,
    find_component_files,
    read_config,
    resolve_model,
    shards,
)
from max_zimage.checkpoint.parts import own_part, parts_in
from max_zimage.checkpoint.plan import LoadPlan, holds_final_norm, plan
from max_zimage.checkpoint.published import published_configs
from max_zimage.checkpoint.recognition import recognized
from max_zimage.checkpoint.tensors import Source, Tensor
from max_zimage.checkpoint.tied import HEADS
from max_zimage.checkpoint.transforms import transformed
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.errors import CheckpointError

_FULL = frozenset({"F64", "F32", "F16", "BF16"})
"""What is stored without having been quantized."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An input whose files are found.

    Attributes:
        paths: What it is read from: a folder, or the files.
        directory: A model's folder, for what stands in it beside the weights; None if there is none.
        configs: Component -> its configuration; those of the published models if there is no folder.
        specs: Their shapes.
        sources: Component -> its tensors.
    """

    paths: tuple[Path, ...]
    directory: Path | None
    configs: Mapping[str, dict[str, object]]
    specs: ModelSpecs
    sources: Mapping[str, Source]


def open_input(given: str | Path, configs: str | Path | None, only: Collection[str]) -> Opened:
    """Find what is to be converted.

    Args:
        given: A model's folder, a hub id, a weight file, or the index of several.
        configs: A model whose configurations, tokenizer and scheduler belong to weight files.
        only: Components that are looked for; empty for all that are there.

    Raises:
        CheckpointError: If it is not there, is damaged, or is no Z-Image model.
    """
    path = Path(given).expanduser()
    if path.is_file():
        sources = _of_files(_files(path), only)
        directory, paths = None if configs is None else resolve_model(configs), _files(path)
    elif configs is not None:
        raise CheckpointError(f"--configs belongs to weight files, and {given} is no file; leave it out")
    else:
        directory = resolve_model(given)
        sources = _of_folder(directory, only or COMPONENTS)
        paths = [directory]
    read = published_configs() if directory is None else {name: read_config(directory, name) for name in CONFIG_FILES}
    try:
        specs = model_specs(**read)
    except ConfigError as error:
        raise (error if directory is None else error.located({}, directory)) from error
    return Opened(paths=tuple(paths), directory=directory, configs=read, specs=specs, sources=sources)


@dataclass(frozen=True)
class Checked:
    """A component that is checked.

    Attributes:
        plan: All its parameters; nothing of it is unused.
        head: The text encoder's matrix that predicts words, which the engine never loads; None if there is none.
    """

    plan: LoadPlan
    head: Tensor | None


def check_component(opened: Opened, component: str, transforms: Sequence[Transform]) -> Checked:
    """Check a component's tensors against its configuration.

    Args:
        opened: The input.
        component: One that it has.
        transforms: Such as LoRAs.

    Raises:
        CheckpointError: With all that does not fit.
    """
    source = opened.sources[component]
    try:
        checked = plan(_table(opened.specs, component), source, transforms)
        if component == "text_encoder" and holds_final_norm(checked):
            checked = plan(_table(opened.specs, component, final_norm=True), source, transforms)
    except CheckpointError as error:
        hint = "" if opened.directory is not None else f"\n  {_NO_CONFIGS}"
        raise CheckpointError(f"{error}{hint}") from error
    head = None
    if heads := [name for name in checked.dropped if component == "text_encoder" and name.endswith(HEADS)]:
        head = transformed(own_part(source, component)[0], transforms).tensors[heads[0]]
    return Checked(checked, head)


_NO_CONFIGS = (
    "weight files come without a configuration, so the shapes of the published Z-Image models were expected; for "
    "another one name a model with --configs"
)


def quantized_words(checked: Checked) -> list[str]:
    """What the quantized tensors of a component are stored as; none if it is not quantized."""
    return sorted(set(checked.plan.storage) - _FULL)


def _table(specs: ModelSpecs, component: str, *, final_norm: bool = False) -> ParameterTable:
    if component == "text_encoder":
        encoder = specs.text_encoder
        return text_encoder_names(encoder, encoder.num_layers, final_norm=final_norm)
    return transformer_names(specs.transformer) if component == "transformer" else vae_names(specs.vae)


def _files(path: Path) -> list[Path]:
    if not path.name.endswith(".index.json"):
        return [path]
    return shards(path)


def _of_folder(directory: Path, only: Collection[str]) -> dict[str, Source]:
    found, problems = {}, []
    for name in only:
        try:
            found[name] = open_source(find_component_files(directory, name))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    return found


def _of_files(files: Sequence[Path], only: Collection[str]) -> dict[str, Source]:
    """The components that files hold."""
    source = open_source(files)
    held = parts_in(source.tensors)
    found = {name: source for name in COMPONENTS if name in held}
    if not found:
        what = recognized(source.tensors)
        raise CheckpointError(f"{files[0]} holds no part of a Z-Image model{f': it is {what}' if what else ''}")
    if absent := [name for name in only if name not in found]:
        raise CheckpointError(f"{files[0]} holds no {' and no '.join(absent)}; it holds {', '.join(found)}")
    return {name: part for name, part in found.items() if not only or name in only}
