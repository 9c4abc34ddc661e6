"""What is made of a checkpoint's tensors: every parameter of a component, or all that does not fit, said at once.

    files -> tensors -> transforms -> recipes (format found, every name, shape and dtype checked) -> buffers

A plan reads headers only, so everything that is wrong with a checkpoint is said before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from max_zimage.checkpoint.expand import ParameterSource, ParameterTable, weights
from max_zimage.checkpoint.names import TEXT_ENCODER_NORM, Layout, Naming, Packing
from max_zimage.checkpoint.numbers import STORED
from max_zimage.checkpoint.recognition import recognized
from max_zimage.checkpoint.tensors import Source, Tensor
from max_zimage.checkpoint.transforms import transformed
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.device.dtypes import BYTES, ModelDtype
from max_zimage.errors import CheckpointError
from max_zimage.graphs.linear import Codes, Storage, codes_of

EMBEDDING = "embed_tokens.weight"

_SHOWN = 5  # names shown of each kind of problem


@dataclass(frozen=True)
class ParameterRecipe:
    """How one parameter is made.

    Attributes:
        engine: The graphs' name.
        parts: Tensors of the files, stacked along axis 0.
        layout: How each part is turned first.
        shape: Of the result.
        rotary_heads: Leading heads of the result whose pairs are brought apart.
        head_dim: Their width.
        packing: How the result is packed where the graphs take it packed.
    """

    engine: str
    parts: tuple[Tensor, ...]
    layout: Layout
    shape: tuple[int, ...]
    rotary_heads: int = 0
    head_dim: int = 0
    packing: Packing | None = None


@dataclass(frozen=True)
class LoadPlan:
    """A checked component, ready to load.

    Attributes:
        component: Its folder's name.
        format: Which naming the files use, in words.
        files: Where it comes from.
        recipes: How every parameter is made.
        dropped: Tensors of the files that are not loaded -> why.
        storage: How matrices are kept in memory; None for the model's dtype.
    """

    component: str
    format: str
    files: tuple[Path, ...]
    recipes: tuple[ParameterRecipe, ...]
    dropped: Mapping[str, str]
    storage: Storage | None = None

    def codes(self, recipe: ParameterRecipe) -> Codes | None:
        """How a parameter is quantized; None if it is not. `graphs.linear` decides alike."""
        stem, found, _ = recipe.engine.rpartition(".weight")
        if self.storage is None or not found or recipe.packing not in ("panels", "gated") or stem in self._biased:
            return None
        return codes_of(self.storage, recipe.shape[1])

    def dtype_of(self, recipe: ParameterRecipe, dtype: ModelDtype) -> ModelDtype:
        """What a parameter that is not quantized has in a model of this dtype; see `graphs.linear.NarrowEmbedding`."""
        return "bfloat16" if self.storage is not None and recipe.engine == EMBEDDING else dtype

    @cached_property
    def _biased(self) -> frozenset[str]:
        return frozenset(each.engine.removesuffix(".bias") for each in self.recipes if each.engine.endswith(".bias"))

    @property
    def dtype(self) -> ModelDtype:
        """The dtype that most of the weights have in the files; float32 stands for float16, too."""
        counts: dict[ModelDtype, int] = {"bfloat16": 0, "float32": 0}
        for recipe in self.recipes:
            for part in recipe.parts:
                counts[STORED[part.dtype].runs_as] += part.size
        return "bfloat16" if counts["bfloat16"] > counts["float32"] else "float32"

    def nbytes(self, dtype: ModelDtype) -> int:
        """Memory that the loaded weights take in a dtype."""
        total = 0.0
        for recipe in self.recipes:
            codes = self.codes(recipe)
            # A scale is a float32 number.
            each = BYTES[self.dtype_of(recipe, dtype)] if codes is None else codes.bits / 8 + 4 / codes.group
            total += prod(recipe.shape) * each
        return round(total)


def plan(names: ParameterTable, source: Source, transforms: Sequence[Transform] = ()) -> LoadPlan:
    """Check a component's files against what the graphs need.

    Args:
        names: From `text_encoder_names`, `transformer_names` or `vae_names`.
        source: From `max_zimage.checkpoint.formats.open_source`.
        transforms: Applied to its tensors before anything is checked, behind those that always are.

    Returns:
        What to load from where.

    Raises:
        CheckpointError: With the format that was recognized and the counts and first names of all tensors that are
            missing, unexpected, or of the wrong shape or dtype.
    """
    source = transformed(source, transforms)
    naming, prefix = _recognize(names, source)
    written = weights(names, naming, prefix)
    label = names.namings[naming] + (f" behind {prefix!r}" if prefix else "")
    dropped = {
        (prefix if entry.prefixed else "") + entry.name: entry.reason
        for entry in names.dropped
        if (prefix if entry.prefixed else "") + entry.name in source.tensors
    }
    _check(names.component, label, written, source, dropped)
    recipes = []
    for weight in written:
        parts = tuple(source.tensors[part.name] for part in weight.parts)
        if weight.unused is None:
            shape = _result_shape(parts, weight.layout)
            heads = weight.rotary_heads, weight.head_dim
            recipes.append(ParameterRecipe(weight.engine, parts, weight.layout, shape, *heads, weight.packing))
        else:
            dropped |= {part.name: weight.unused for part in parts}
    return LoadPlan(names.component, label, source.files, tuple(recipes), dropped)


def holds_final_norm(checked: LoadPlan) -> bool:
    """Whether a text encoder's files hold the norm behind its layers, which is loaded only when it is asked for."""
    return any(name.removeprefix("model.") == TEXT_ENCODER_NORM.engine for name in checked.dropped)


def _recognize(names: ParameterTable, source: Source) -> tuple[Naming, str]:
    """The naming and prefix under which most of the expected tensors are found."""
    found = {
        (naming, prefix): sum(
            part.name in source.tensors for weight in weights(names, naming, prefix) for part in weight.parts
        )
        for naming in names.namings
        for prefix in names.prefixes
    }
    best = max(found, key=lambda choice: found[choice])
    if found[best] == 0:
        known = " or ".join(names.namings.values())
        what = recognized(source.tensors)
        raise CheckpointError(
            f"{names.component}: {_files(source)} holds none of the expected tensors in {known}; it "
            f"{'' if what is None else f'is {what}. It '}holds {_list(sorted(source.tensors))}"
        )
    return best


def _check(
    component: str, label: str, written: Sequence[ParameterSource], source: Source, dropped: Mapping[str, str]
) -> None:
    expected = {part.name: part.shape for weight in written for part in weight.parts}
    tensors = source.tensors
    both = [name for name in expected if name in tensors]
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": sorted(name for name in tensors if name not in expected and name not in dropped),
        "of the wrong shape": [
            f"{name} is {list(tensors[name].shape)} and must be {list(expected[name])}"
            for name in both
            if tensors[name].shape != expected[name]
        ],
        "of the wrong dtype": [
            f"{name} is {tensors[name].dtype} and must be one of {', '.join(STORED)}"
            for name in both
            if tensors[name].dtype not in STORED
        ],
    }
    if not any(problems.values()):
        return
    counts = ", ".join(f"{len(which)} {what}" for what, which in problems.items() if which)
    lines = [f"{component}: {_files(source)} ({label}) does not fit {component}/config.json: {counts}"]
    lines += [f"  {what}: {_list(which)}" for what, which in problems.items() if which]
    if problems["of the wrong dtype"]:
        lines.append(
            "  quantized weights (8 bits and fewer) are not supported yet; use a bfloat16 or float32 checkpoint"
        )
    raise CheckpointError("\n".join(lines))


def _result_shape(parts: Sequence[Tensor], layout: Layout) -> tuple[int, ...]:
    rows, rest = sum(part.shape[0] for part in parts), parts[0].shape[1:]
    if layout == "conv":
        return (*rest[1:], rest[0], rows)
    return (rows, rest[0]) if layout == "matrix" else (rows, *rest)


def _files(source: Source) -> str:
    first = source.files[0]
    return str(first) if len(source.files) == 1 else f"{first} with {len(source.files) - 1} more shards"


def _list(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
