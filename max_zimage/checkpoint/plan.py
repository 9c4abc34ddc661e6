"""What is made of a checkpoint's tensors: every parameter of a component, or all that does not fit, said at once.

    files -> tensors -> transforms -> recipes (format found, every name, shape and dtype checked) -> buffers

A plan reads headers only, so everything that is wrong with a checkpoint is said before anything is compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from max_zimage.checkpoint.expand import Expected, ParameterSource, ParameterTable, weights
from max_zimage.checkpoint.names import TEXT_ENCODER_NORM, Layout, Naming, Packing
from max_zimage.checkpoint.numbers import STORED
from max_zimage.checkpoint.parts import own_part
from max_zimage.checkpoint.recognition import recognized
from max_zimage.checkpoint.tensors import Source, Tensor
from max_zimage.checkpoint.transforms import transformed
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.device.dtypes import BYTES, ModelDtype
from max_zimage.errors import CheckpointError
from max_zimage.graphs.linear import Codes, Storage, codes_of
from max_zimage.host.words import counted

EMBEDDING = "embed_tokens.weight"

_SHOWN = 5  # names shown of each kind of problem
_PRECISE = ("F32", "BF16", "F16")
_BASE_OF_2507 = 5e6


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
        format: Which naming the files use, in words, and which kind of files they are unless they are safetensors.
        files: Where it comes from.
        recipes: How every parameter is made.
        dropped: Tensors of the files that are not loaded -> why.
        kept_as: How matrices are kept in memory; None for the model's dtype.
    """

    component: str
    format: str
    files: tuple[Path, ...]
    recipes: tuple[ParameterRecipe, ...]
    dropped: Mapping[str, str]
    kept_as: Storage | None = None

    def codes(self, recipe: ParameterRecipe) -> Codes | None:
        """How a parameter is quantized; None if it is not. `graphs.linear` decides alike."""
        stem, found, _ = recipe.engine.rpartition(".weight")
        if self.kept_as is None or not found or recipe.packing not in ("panels", "gated") or stem in self._biased:
            return None
        return codes_of(self.kept_as, recipe.shape[1])

    def dtype_of(self, recipe: ParameterRecipe, dtype: ModelDtype) -> ModelDtype:
        """What a parameter that is not quantized has in a model of this dtype; see `graphs.linear.NarrowEmbedding`."""
        return "bfloat16" if self.kept_as is not None and recipe.engine == EMBEDDING else dtype

    def widened_bytes(self, dtype: ModelDtype) -> int:
        """Memory of the largest matrix that is widened in front of its product; 0 where none is."""
        codes = [(each, self.codes(each)) for each in self.recipes]
        return max((prod(each.shape) * BYTES[dtype] for each, how in codes if how and not how.is_packed), default=0)

    @cached_property
    def _biased(self) -> frozenset[str]:
        return frozenset(each.engine.removesuffix(".bias") for each in self.recipes if each.engine.endswith(".bias"))

    @property
    def dtype(self) -> ModelDtype:
        """The dtype that most of the weights have in the files, or are decoded to; float32 stands for float16, too."""
        counts: dict[ModelDtype, int] = {"bfloat16": 0, "float32": 0}
        for recipe in self.recipes:
            for part in recipe.parts:
                counts[STORED[part.dtype].runs_as] += part.size
        return "bfloat16" if counts["bfloat16"] > counts["float32"] else "float32"

    @property
    def storage(self) -> dict[str, int]:
        """What the files store the tensors as that are loaded -> how many of them, most first."""
        counts = Counter(part.storage for recipe in self.recipes for part in recipe.parts)
        return dict(counts.most_common())

    def nbytes(self, dtype: ModelDtype) -> int:
        """Memory that the loaded weights take in a dtype."""
        return sum(self.nbytes_of(recipe, dtype) for recipe in self.recipes)

    def nbytes_of(self, recipe: ParameterRecipe, dtype: ModelDtype) -> int:
        """The same of one parameter."""
        codes = self.codes(recipe)
        # A scale is a float32 number.
        each = BYTES[self.dtype_of(recipe, dtype)] if codes is None else codes.bits / 8 + 4 / codes.group
        return round(prod(recipe.shape) * each)


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
            missing, unexpected, or of the wrong shape or dtype; or as a transform says.
    """
    whole = source.tensors
    source, others = own_part(source, names.component)
    if source.tensors:
        source = transformed(source, transforms)
    naming, prefix = _recognize(names, source, whole)
    written = weights(names, naming, prefix)
    label = names.namings[naming] + (f" behind {prefix!r}" if prefix else "")
    label = "".join(f"{container}, " for container in source.containers if container != "safetensors") + label
    check_rotary_base(names, source)
    dropped = others | {
        (prefix if entry.prefixed else "") + entry.name: entry.reason
        for entry in names.dropped
        if (prefix if entry.prefixed else "") + entry.name in source.tensors
    }
    _check(names.component, label, written, source, dropped)
    recipes = []
    for weight in written:
        parts = tuple(source.tensors[part.name] for part in weight.parts)
        if weight.unused is None:
            shape = result_shape(parts, weight.layout)
            heads = weight.rotary_heads, weight.head_dim
            recipes.append(ParameterRecipe(weight.engine, parts, weight.layout, shape, *heads, weight.packing))
        else:
            dropped |= {part.name: weight.unused for part in parts}
    return LoadPlan(names.component, label, source.files, tuple(recipes), dropped)


def holds_final_norm(checked: LoadPlan) -> bool:
    """Whether a text encoder's files hold the norm behind its layers, which is loaded only when it is asked for."""
    names = {name for name, _ in (*TEXT_ENCODER_NORM.diffusers, *TEXT_ENCODER_NORM.original)}
    return any(name in names or name.endswith(f"model.{TEXT_ENCODER_NORM.engine}") for name in checked.dropped)


def check_rotary_base(names: ParameterTable, source: Source) -> None:
    """Compare the rotary base that a GGUF file names with that of the configuration.

    Qwen3-4B-Instruct-2507 and -Thinking-2507 have every shape of the Qwen3-4B that Z-Image was made with and other
    weights, so nothing else tells them apart.

    Raises:
        CheckpointError: If the two differ.
    """
    for file, metadata in source.metadata.items():
        for key, base in metadata.items():
            if names.rope_theta is None or not key.endswith(".rope.freq_base") or base == names.rope_theta:
                continue
            series = ", that of the 2507 series" if base == _BASE_OF_2507 else ""
            named = metadata.get("general.name")
            raise CheckpointError(
                f"{names.component}: {file}{f' ({named})' if named else ''} has the rotary base {base}{series}, and "
                f"the configuration says {names.rope_theta}: it is another model than Z-Image's text encoder, of the "
                "same shapes; use Qwen3-4B, or a configuration whose rope_theta says so too"
            )


def _recognize(names: ParameterTable, source: Source, whole: Collection[str]) -> tuple[Naming, str]:
    """The naming and prefix under which most of the expected tensors are found; `whole` is all that the files hold."""
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
        what = recognized(whole)
        raise CheckpointError(
            f"{names.component}: {_files(source)} holds none of the expected tensors in {known}; it "
            f"{'' if what is None else f'is {what}. It '}holds {_list(sorted(whole))}"
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
    if component == "vae":
        problems["quantized"] = [
            f"{name} is {tensors[name].storage}" for name in both if tensors[name].storage not in _PRECISE
        ]
    if not any(problems.values()):
        return
    counts = ", ".join(f"{len(which)} {what}" for what, which in problems.items() if which)
    lines = [f"{component}: {_files(source)} ({label}) does not fit {component}/config.json: {counts}"]
    lines += [f"  {what}: {_list(which)}" for what, which in problems.items() if which]
    if problems["of the wrong dtype"]:
        lines.append("  numbers of other dtypes are not supported; use a file in bfloat16, float32, float8 or GGUF")
    if problems.get("quantized"):
        lines.append("  a quantized VAE is not supported; use the VAE of the base model, such as ae.safetensors")
    raise CheckpointError("\n".join(lines))


def result_shape(parts: Sequence[Tensor] | Sequence[Expected], layout: Layout) -> tuple[int, ...]:
    """Shape of what parts are stacked to."""
    rows, rest = sum(part.shape[0] for part in parts), parts[0].shape[1:]
    if layout == "conv":
        return (*rest[1:], rest[0], rows)
    return (rows, rest[0]) if layout == "matrix" else (rows, *rest)


def _files(source: Source) -> str:
    first = source.files[0]
    return str(first) if len(source.files) == 1 else f"{first} with {counted(len(source.files) - 1, 'more shard')}"


def _list(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
