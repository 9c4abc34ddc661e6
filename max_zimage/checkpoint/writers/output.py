"""What a conversion writes: weight files with their tensors, and the texts of a folder beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from max_zimage.checkpoint.expand import text_encoder_names, transformer_names, vae_names, weights
from max_zimage.checkpoint.locate import COMPONENTS, CONFIG_FILES
from max_zimage.checkpoint.model_index import INDEX
from max_zimage.checkpoint.names import TEXT_ENCODER_NORM
from max_zimage.checkpoint.published import published_index
from max_zimage.checkpoint.writers import safetensors
from max_zimage.checkpoint.writers.inputs import Checked, Opened, quantized_words
from max_zimage.checkpoint.writers.items import Entry, Item, Rows, entries
from max_zimage.checkpoint.writers.layouts import LAYOUTS, Storing
from max_zimage.checkpoint.writers.stream import WeightFile

_COPIED = ("README.md", "LICENSE")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, kw_only=True)
class Output:
    """All files of a result.

    Attributes:
        weights: Those with tensors.
        texts: Path in the folder -> contents.
        copies: Path in the folder -> the file that is copied there.
        folder: Whether it is a folder.
    """

    weights: Sequence[WeightFile]
    texts: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, Path] = field(default_factory=dict)
    folder: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all files, headers apart."""
        copied = sum(file.stat().st_size for file in self.copies.values())
        return copied + sum(file.nbytes for file in self.weights) + sum(len(text) for text in self.texts.values())


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component on its way to the output.

    Attributes:
        items: Its tensors, as they are stored.
        left: Names of those that could not be quantized as asked.
        quantized: What the quantized ones of the input are stored as.
        metadata: Of its file.
    """

    items: Sequence[Item]
    quantized: Sequence[str]
    left: Sequence[str]
    metadata: Mapping[str, str]

    @property
    def dtype(self) -> str:
        """The dtype of most of its bytes, as configurations say it."""
        words = {item.word for item in self.items}
        most = max(words, key=lambda word: sum(item.nbytes for item in self.items if item.word == word))
        return _DTYPES.get(most, "bfloat16")


def component_of(opened: Opened, checked: Checked, storing: Storing, metadata: Mapping[str, str]) -> Component:
    """Name a component's tensors as the layout has them, and say how each is stored."""
    names = LAYOUTS[storing.layout].names[storing.component]
    specs = opened.specs
    table = {
        "text_encoder": lambda: text_encoder_names(
            specs.text_encoder,
            specs.text_encoder.num_layers,
            final_norm=any(recipe.engine == TEXT_ENCODER_NORM.engine for recipe in checked.plan.recipes),
        ),
        "transformer": lambda: transformer_names(specs.transformer),
        "vae": lambda: vae_names(specs.vae),
    }[storing.component]()
    made = entries(checked.plan.recipes, weights(table, names.naming, names.prefix))
    if (head := checked.head) is not None:
        made.append(Entry(names.head, head.shape, (Rows(head, 0, head.shape[0]),)))
    return Component(
        items=[item for entry in made for item in storing.items(entry)],
        quantized=quantized_words(checked),
        left=[entry.name for entry in made if storing.does_not_fit(entry)],
        metadata=metadata,
    )


def single_file(component: str, part: Component, opened: Opened, *, gguf: bool) -> Output:
    """One component in one file."""
    if gguf:
        spec = opened.specs.text_encoder if component == "text_encoder" else None
        file = WeightFile(path="", items=part.items, metadata=part.metadata, is_gguf=True, text_encoder=spec)
    else:
        file = WeightFile(path="", items=safetensors.ordered(part.items), metadata=part.metadata)
    return Output(weights=[file], folder=False)


def all_in_one(parts: Mapping[str, Component]) -> Output:
    """All components in one file."""
    items = [item for part in parts.values() for item in part.items]
    metadata: dict[str, str] = {}
    for part in parts.values():
        metadata = {**part.metadata, **metadata}
    return Output(
        weights=[WeightFile(path="", items=safetensors.ordered(items), metadata=metadata)],
        folder=False,
    )


def original_folder(parts: Mapping[str, Component]) -> Output:
    """A file for each component, in a folder of its name, by which `--weight-path` takes it."""
    return Output(
        weights=[
            WeightFile(
                path=f"{name}/{LAYOUTS['original'].names[name].file}",
                items=safetensors.ordered(part.items),
                metadata=part.metadata,
            )
            for name, part in parts.items()
        ],
        folder=True,
    )


def diffusers_folder(
    opened: Opened, parts: Mapping[str, Component], *, shard_bytes: int, shift: float | None
) -> Output:
    """A folder as `save_pretrained` writes it; of a model that is complete also what belongs to no component.

    Args:
        opened: The input.
        parts: The components.
        shard_bytes: Most bytes of tensors in a file.
        shift: Of the scheduler, where the input has none.
    """
    written: list[WeightFile] = []
    texts: dict[str, str] = {}
    copies: dict[str, Path] = {}
    for name, part in parts.items():
        stem = LAYOUTS["diffusers"].names[name].file
        files, index = safetensors.shards(stem, safetensors.ordered(part.items), shard_bytes)
        written += [
            WeightFile(path=f"{name}/{file}", items=items, metadata=part.metadata) for file, items in files.items()
        ]
        if index is not None:
            texts[f"{name}/{stem}.safetensors.index.json"] = _json(index)
        if opened.directory is not None:
            copies |= _besides(opened.directory / name, name, "*.json")
        config = f"{name}/{CONFIG_FILES[name]}"
        copies.pop(config, None)
        texts[config] = _json(_config(opened.configs[name], part.dtype))
    if set(parts) == set(COMPONENTS):
        if opened.directory is None:
            texts[INDEX] = _json(published_index())
            texts["scheduler/scheduler_config.json"] = _json({**opened.configs["scheduler"], "shift": shift})
        else:
            there = opened.directory
            copies |= {name: there / name for name in (INDEX, *_COPIED) if (there / name).is_file()}
            for folder in ("scheduler", "tokenizer"):
                copies |= _besides(there / folder, folder)
    return Output(weights=written, texts=texts, copies=copies, folder=True)


def _config(config: Mapping[str, object], dtype: str) -> dict[str, object]:
    """A component's configuration with the dtype that it has now; nothing is quantized any more."""
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    return {key: dtype if key in ("dtype", "torch_dtype") else value for key, value in kept.items()}


def _besides(folder: Path, name: str, pattern: str = "*") -> dict[str, Path]:
    """Files of a folder, to be copied under its name; no index of shards, for the new one is another."""
    files = sorted(file for file in folder.glob(pattern) if file.is_file() and not file.name.endswith(".index.json"))
    return {f"{name}/{file.name}": file for file in files}


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
