"""Opens an adapter: reads names and shapes, checks them all against the model, and says at once what does not fit."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import safe_open

from max_zimage.checkpoint.adapters.adapter import Adapter, Stamp, stamp
from max_zimage.checkpoint.adapters.changes import Change, blocks
from max_zimage.checkpoint.adapters.kinds import ModuleReader
from max_zimage.checkpoint.adapters.others import what_else
from max_zimage.checkpoint.adapters.peft import CONFIG, WEIGHTS, Configuration, configuration
from max_zimage.checkpoint.adapters.spelling import BIAS, REFUSED, SUFFIXES, is_adapter, spellings, split
from max_zimage.checkpoint.adapters.values import finite, numbers
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.formats.gguf_kinds import LORA
from max_zimage.checkpoint.tensors import Files, StoredTensor
from max_zimage.errors import AdapterError
from max_zimage.host.words import counted
from max_zimage.strict_json import read_object

_SHOWN = 5  # names shown of each kind of problem
_METADATA = "lora_adapter_metadata"


def open_adapter(path: Path, specs: ModelSpecs) -> Adapter:
    """Open a LoRA, or one of its relatives, and check that it fits a model.

    Args:
        path: A safetensors file, or a folder as PEFT writes it. A file of such a folder stands for the folder: without
            the configuration beside it its scale would be another.
        specs: The model's.

    Returns:
        What it changes. It is read once as long as its files stay the same.

    Raises:
        AdapterError: With all that is wrong: names that the model does not have, parts that are missing, shapes and
            dtypes that do not fit, numbers that are none.
        CheckpointError: If the file cannot be read as safetensors.
    """
    weights, config = _files(path.absolute())  # the working folder may be another one when numbers are read
    stamps = tuple(stamp(file) for file in (config, weights) if file is not None)
    adapter = replace(_opened(weights, config, stamps, specs), path=path, name=path.stem)
    for note in adapter.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return adapter


def _files(path: Path) -> tuple[Path, Path | None]:
    """The weights, and PEFT's configuration where there is one."""
    folder = path if path.is_dir() else path.parent if path.name == WEIGHTS else None
    if folder is None or (folder != path and not (folder / CONFIG).is_file()):
        return path, None
    if absent := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        there = ", ".join(sorted(each.name for each in folder.iterdir())[:_SHOWN]) or "nothing"
        raise AdapterError(f"{folder} is no PEFT adapter: it lacks {' and '.join(absent)}; found {there}")
    return folder / WEIGHTS, folder / CONFIG


@lru_cache(maxsize=64)
def _opened(weights: Path, config: Path | None, stamps: tuple[Stamp, ...], specs: ModelSpecs) -> Adapter:
    source = open_source([weights])
    if is_adapter(source.tensors) and "GGUF" in source.containers:  # under the names of safetensors, without a mark
        raise AdapterError(f"{weights} is {LORA}")
    tensors = {name: each for name, each in source.tensors.items() if isinstance(each, StoredTensor)}
    if not is_adapter(tensors):
        raise AdapterError(f"{weights} is no LoRA: {what_else(tensors, specs)}")
    reading = _Reading(weights, specs, _configurations(weights, config))
    modules = reading.modules(tensors)
    if reading.problems:
        raise AdapterError(_said(weights, reading.problems))
    digest = hashlib.sha256()
    for file, _, _ in stamps:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return Adapter(weights, weights.stem, digest.hexdigest(), modules, specs, stamps, tuple(reading.notes))


def _configurations(weights: Path, config: Path | None) -> Mapping[str, Configuration]:
    """PEFT's configurations by component: of its own file for all of them, of diffusers' header for each."""
    if config is not None:
        found, problems = configuration(read_object(config))
        if found is None:
            raise AdapterError(_said(config, problems))
        return {"transformer": found, "text_encoder": found}
    with safe_open(weights, framework="numpy") as opened:
        text = (opened.metadata() or {}).get(_METADATA)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except ValueError as error:
        raise AdapterError(f"{weights}: {_METADATA} in its header is no JSON ({error})") from error
    by_component: dict[str, dict[str, object]] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        component, _, name = key.partition(".")
        by_component.setdefault(component, {})[name] = value
    configurations = {}
    for component, fields in by_component.items():
        found, problems = configuration(fields)
        if found is None:
            raise AdapterError(_said(weights, [f"{_METADATA}: {component}: {problem}" for problem in problems]))
        configurations[component] = found
    return configurations


@dataclass
class _Reading:
    """What is found while a file is read.

    Attributes:
        weights: The file.
        specs: The model's.
        configurations: PEFT's, by component.
        files: Where numbers are read from.
        problems: All that is wrong.
        notes: All that is odd.
    """

    weights: Path
    specs: ModelSpecs
    configurations: Mapping[str, Configuration]
    files: Files = field(default_factory=Files)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def modules(self, tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, tuple[Change, ...]]]:
        """The changes of all modules, by component and module."""
        spelled = self._spelled(tensors)
        known = spellings(self.specs)
        if not spelled and not any(problem for problem in self.problems):
            self.problems.append(f"it holds no part of an adapter: {listed(sorted(tensors))}")
        found: dict[str, dict[str, tuple[Change, ...]]] = {}
        for stem, parts in spelled.items():
            module = known[stem]
            there = self.configurations.get(module.component)
            reader = ModuleReader(module, stem, parts, there, self.files)
            changes = reader.read()
            self.problems += reader.problems
            self.notes += reader.notes
            of_component = found.setdefault(module.component, {})
            of_component[module.name] = (*of_component.get(module.name, ()), *changes)
        if not self.problems:
            self._check_numbers(tensors)
        if not self.problems:
            found = {component: self._once(changes) for component, changes in found.items()}
        return found

    def _spelled(self, tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
        """Spelled module -> part -> tensor, of all that is known; the rest are problems."""
        known = spellings(self.specs)
        biases = any(each.biases for each in self.configurations.values())
        spelled: dict[str, dict[str, StoredTensor]] = {}
        unknown, foreign, refused = [], [], dict[str, list[str]]()
        for name in sorted(tensors):
            apart = split(name, with_biases=biases)
            if apart is None:
                unknown.append(name)
            elif apart[1] in REFUSED:
                refused.setdefault(REFUSED[apart[1]], []).append(name)
            elif apart[0] not in known:
                foreign.append(name)
            else:
                part = "bias" if apart[1] == BIAS else SUFFIXES[apart[1]]
                parts = spelled.setdefault(apart[0], {})
                if part in parts:
                    self.problems.append(f"{apart[0]}: {parts[part].name} and {name} are the same part")
                parts[part] = tensors[name]
        self.problems += [f"{listed(names)}: {reason}" for reason, names in refused.items()]
        if unknown:
            self.problems.append(f"{counted(len(unknown), 'tensor')} of no known kind: {listed(unknown)}")
        if foreign:
            self.problems.append(
                f"{len(foreign)} of {counted(len(tensors), 'tensor')} belong to no module of this model: "
                f"{listed(foreign)}; " + what_else(foreign, self.specs)
            )
        return spelled

    def _check_numbers(self, tensors: Mapping[str, StoredTensor]) -> None:
        damaged = [name for name, tensor in tensors.items() if not finite(tensor, self.files)]
        if damaged:
            which = counted(len(damaged), "tensor holds", "tensors hold")
            self.problems.append(f"{which} NaN or infinity: {listed(damaged)}")

    def _once(self, found: Mapping[str, tuple[Change, ...]]) -> dict[str, tuple[Change, ...]]:
        """The same with every tensor of the model changed by one module: files may hold a change in both namings."""
        by_tensor: dict[str, tuple[str, Change]] = {}
        kept: dict[str, tuple[Change, ...]] = {}
        by_size = sorted(found.items(), key=lambda each: -max(len(change.target.stretches) for change in each[1]))
        for name, changes in by_size:
            for change in changes:
                before = [by_tensor.get(stretch.name) for stretch in change.target.stretches]
                if (None in before and any(before)) or any(each and not self._same(each[1], change) for each in before):
                    others = sorted({each[0] for each in before if each})
                    self.problems.append(f"{' and '.join([*others, name])} change the same weights in different ways")
                elif None in before:
                    by_tensor |= {stretch.name: (name, change) for stretch in change.target.stretches}
                    kept[name] = (*kept.get(name, ()), change)
        return kept

    def _same(self, one: Change, other: Change) -> bool:
        """Whether two changes do the same to all rows that both have, to the bit."""
        if one.kind != other.kind or (one.needs_whole and one.target != other.target):
            return False
        ready = [each.delta.ready(self.files, 1.0) for each in (one, other)]
        shifts = {stretch.name: stretch.begin for stretch in one.target.stretches}
        for stretch in other.target.stretches:
            if stretch.name not in shifts:
                continue
            shift = shifts[stretch.name] - stretch.begin
            for begin, end in blocks(stretch.begin, stretch.end, int(np.prod(other.target.shape[1:]))):
                if not np.array_equal(ready[0](begin + shift, end + shift), ready[1](begin, end)):
                    return False
            if one.magnitude and other.magnitude:
                lengths = [numbers(each.values, self.files) for each in (one.magnitude, other.magnitude)]
                if one.magnitude.per == "output":
                    begin, end = stretch.begin, stretch.end
                    lengths = [lengths[0][begin + shift : end + shift], lengths[1][begin:end]]
                if not np.array_equal(lengths[0].reshape(-1), lengths[1].reshape(-1)):
                    return False
        return True


def listed(names: list[str]) -> str:
    """The first of some names."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _said(file: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{file}: {problems[0]}"
    shown = problems[: 4 * _SHOWN]
    more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    return "\n  ".join([f"{file} does not fit, for {len(problems)} reasons:", *shown, *more])
