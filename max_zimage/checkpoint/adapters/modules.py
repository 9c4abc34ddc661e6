"""The modules of a model that an adapter may name: all that the table of weight names knows, in both namings.

An adapter and a checkpoint may each use either naming, so both are brought to one: rows of the tensors as diffusers has
them. The original's fused query, key and value are then three tensors stacked, and a delta of any of them is added to
the same rows whichever naming the checkpoint's files use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.checkpoint.expand import Expected, ParameterTable, text_encoder_names, transformer_names, weights
from max_zimage.checkpoint.names import Naming

COMPONENTS = ("transformer", "text_encoder")
"""Those that adapters change."""


@dataclass(frozen=True)
class Stretch:
    """A tensor as diffusers has it, where it stands in another one that several are stacked in.

    Attributes:
        name: Of the tensor, without a file's prefix.
        begin: Its first row in the other one.
        end: The row behind its last one there.
    """

    name: str
    begin: int
    end: int


@dataclass(frozen=True)
class Target:
    """A tensor that can be changed.

    Attributes:
        shape: Of it.
        stretches: The tensors in diffusers' naming that it is made of; one, or query, key and value.
    """

    shape: tuple[int, ...]
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Module:
    """What an adapter names.

    Attributes:
        component: Whose it is.
        name: In the naming that has it.
        weight: Its weight; a parameter that is a module by itself, such as `x_pad_token`, has this alone.
        bias: Its bias, where it has one.
    """

    component: str
    name: str
    weight: Target | None
    bias: Target | None


@lru_cache(maxsize=16)
def parameter_table(specs: ModelSpecs, component: str) -> ParameterTable:
    """All names of a component's tensors, those that are not loaded too.

    Args:
        specs: The model's.
        component: One of `COMPONENTS`.
    """
    if component == "transformer":
        return transformer_names(specs.transformer)
    return text_encoder_names(specs.text_encoder, specs.text_encoder.num_layers, final_norm=True)


@lru_cache(maxsize=16)
def targets(specs: ModelSpecs, component: str) -> Mapping[str, Target]:
    """Every tensor of a component that a file may hold, by its name in either naming, without a file's prefix."""
    table = parameter_table(specs, component)
    found = {}
    for naming in table.namings:
        for parts, whole in _aligned(table, naming):
            for part, begin in parts:
                end = begin + part.shape[0]
                stretches = tuple(
                    Stretch(each.name, start - begin, start - begin + each.shape[0])
                    for each, start in whole
                    if begin <= start < end
                )
                found[part.name] = Target(part.shape, stretches)
    return MappingProxyType(found)


def modules(specs: ModelSpecs, component: str) -> list[Module]:
    """Every module of a component, in either naming; one that both have alike stands there once."""
    members: dict[str, dict[str, Target]] = {}
    for name, target in targets(specs, component).items():
        stem, _, member = name.rpartition(".")
        if member in ("weight", "bias"):
            members.setdefault(stem, {})[member] = target
        else:
            members.setdefault(name, {})["weight"] = target
    return [Module(component, name, has.get("weight"), has.get("bias")) for name, has in members.items()]


def _aligned(
    table: ParameterTable, naming: Naming
) -> Iterator[tuple[list[tuple[Expected, int]], list[tuple[Expected, int]]]]:
    """For every parameter its tensors in a naming and in diffusers', each with its first row in the parameter."""
    for one, other in zip(weights(table, naming, ""), weights(table, "diffusers", ""), strict=True):
        yield _placed(one.parts), _placed(other.parts)


def _placed(parts: tuple[Expected, ...]) -> list[tuple[Expected, int]]:
    placed, begin = [], 0
    for part in parts:
        placed.append((part, begin))
        begin += part.shape[0]
    return placed
