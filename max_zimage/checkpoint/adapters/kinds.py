"""What the tensors of a module come to: the kind of its change, with every shape and dtype checked.

References: the table of kinds in ComfyUI comfy/weight_adapter; the scale is alpha / rank, where the rank is that of
the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from max_zimage.checkpoint.adapters.changes import Change, Magnitude
from max_zimage.checkpoint.adapters.deltas import Delta, Difference, Hadamard, Kronecker, LowRank
from max_zimage.checkpoint.adapters.modules import Module, Target
from max_zimage.checkpoint.adapters.peft import Configuration
from max_zimage.checkpoint.adapters.values import FLOATS, SCALARS, numbers
from max_zimage.checkpoint.tensors import Files, StoredTensor

_WEIGHT_KINDS: Mapping[str, tuple[str, ...]] = {
    "LoRA": ("down", "up", "up_bias"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "difference": ("diff",),
}
_SCALARS = ("alpha", "scale")


@dataclass
class ModuleReader:
    """Makes the changes of one module.

    Attributes:
        module: Which one.
        spelled: As the file calls it.
        tensors: Part -> tensor; see `spelling.SUFFIXES`.
        configuration: PEFT's, where there is one.
        files: Where scalars are read from.
        problems: All that is wrong, once it was read.
        notes: What is odd.
    """

    module: Module
    spelled: str
    tensors: Mapping[str, StoredTensor]
    configuration: Configuration | None
    files: Files
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self) -> tuple[Change, ...]:
        """The changes of its weight and its bias; none if there is a problem."""
        for part, tensor in self.tensors.items():
            allowed = SCALARS if part in _SCALARS else FLOATS
            if tensor.dtype not in allowed:
                self._wrong(f"{tensor.name} is {tensor.dtype} and must be one of {', '.join(allowed)}")
            elif part not in _SCALARS and not tensor.shape:
                self._wrong(f"{tensor.name} is a single number")
            elif 0 in tensor.shape:
                self._wrong(f"{tensor.name} is {list(tensor.shape)}: a rank of 0, or nothing at all")
        kinds = [kind for kind, parts in _WEIGHT_KINDS.items() if any(part in self.tensors for part in parts)]
        if len(kinds) > 1:
            self._wrong(f"it holds both {' and '.join(kinds)}")
        if self.problems:
            return ()
        changes = [change for change in (self._of_weight(kinds), self._of_bias()) if change is not None]
        if not changes and not self.problems:
            self._wrong(f"{', '.join(sorted(self.tensors))} alone changes nothing")
        return () if self.problems else tuple(changes)

    def _of_weight(self, kinds: Sequence[str]) -> Change | None:
        if not kinds:
            return None
        makers: Mapping[str, Callable[[Target], Delta | None]] = {
            "LoRA": self._low_rank,
            "LoHa": self._hadamard,
            "LoKr": self._kronecker,
            "difference": self._difference,
        }
        target = self.module.weight
        if target is None or (kinds[0] != "difference" and len(target.shape) != 2):
            self._wrong(f"a {kinds[0]} changes a matrix, and this module has none")
            return None
        delta = makers[kinds[0]](target)
        magnitude = self._magnitude(target)
        return None if delta is None else Change(self.module.name, target, delta, magnitude)

    def _low_rank(self, target: Target) -> LowRank | None:
        if not self._complete("down", "up"):
            return None
        down, up = self.tensors["down"], self.tensors["up"]
        rank = _flat(down)[0]
        outputs, inputs = target.shape
        self._shaped("down", (rank, inputs))
        self._shaped("up", (outputs, rank))
        return LowRank(self._factor(rank), down, up)

    def _hadamard(self, target: Target) -> Hadamard | None:
        names = _WEIGHT_KINDS["LoHa"]
        if not self._complete(*names):
            return None
        w1_a, w1_b, w2_a, w2_b = (self.tensors[name] for name in names)
        outputs, inputs = target.shape
        for a, b in (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")):
            rank = _flat(self.tensors[b])[0]
            self._shaped(b, (rank, inputs))
            self._shaped(a, (outputs, rank))
        return Hadamard(self._factor(_flat(w1_b)[0]), w1_a, w1_b, w2_a, w2_b)

    def _kronecker(self, target: Target) -> Kronecker | None:
        factors, sizes = [], []
        for name in ("lokr_w1", "lokr_w2"):
            whole, halves = self.tensors.get(name), [self.tensors.get(f"{name}_{half}") for half in "ab"]
            if whole is not None and any(halves):
                self._wrong(f"{name} is there whole and as a product")
                return None
            if whole is None and not self._complete(f"{name}_a", f"{name}_b"):
                return None
            parts = (whole,) if whole is not None else tuple(half for half in halves if half is not None)
            if any(len(_flat(part)) != 2 for part in parts):
                self._wrong(f"{name} must be of two dimensions, got {[list(part.shape) for part in parts]}")
                return None
            if len(parts) == 2:
                self._shaped(f"{name}_a", (_flat(parts[0])[0], _flat(parts[1])[0]))
            factors.append(parts)
            sizes.append((_flat(parts[0])[0], _flat(parts[-1])[1]))
        product = (sizes[0][0] * sizes[1][0], sizes[0][1] * sizes[1][1])
        if product != target.shape:
            self._wrong(
                f"its Kronecker product is {list(product)} and must be {list(target.shape)}" + self._hint(product)
            )
        ranks = [_flat(parts[1])[0] for parts in reversed(factors) if len(parts) == 2]
        # Without a product there is no rank, and writers put any number there.
        return Kronecker(self._factor(ranks[0]) if ranks else 1.0, *factors)

    def _difference(self, target: Target) -> Difference:
        self._shaped("diff", target.shape)
        return Difference(1.0, self.tensors["diff"])

    def _magnitude(self, target: Target) -> Magnitude | None:
        ours, theirs = self.tensors.get("magnitude"), self.tensors.get("dora_scale")
        if ours is not None and theirs is not None:
            self._wrong("it holds both a dora_scale and a lora_magnitude_vector")
        if self.configuration is not None and self.configuration.decomposed != (ours is not None or theirs is not None):
            without = "out" if ours is None and theirs is None else ""
            self._wrong(
                f"it comes with{without} DoRA's lengths, and its configuration says use_dora "
                f"{str(self.configuration.decomposed).lower()}"
            )
        if ours is not None:
            self._shaped("magnitude", (target.shape[0],))
            return Magnitude(ours, "output", of_sum=True, epsilon=0.0)
        if theirs is None:
            return None
        outputs, inputs = target.shape
        epsilon = float(np.finfo(np.float32).eps)
        if theirs.shape == (outputs, 1):
            return Magnitude(theirs, "output", of_sum=False, epsilon=epsilon)
        if theirs.shape == (1, inputs):
            return Magnitude(theirs, "input", of_sum=True, epsilon=epsilon)
        self._wrong(f"{theirs.name} is {list(theirs.shape)} and must be [{outputs}, 1] or [1, {inputs}]")
        return None

    def _of_bias(self) -> Change | None:
        parts = [part for part in ("up_bias", "diff_b", "bias") if part in self.tensors]
        if not parts:
            return None
        target = self.module.bias
        if target is None:
            self._wrong(f"{self.tensors[parts[0]].name} changes a bias, and this module has none")
            return None
        if len(parts) > 1:
            self._wrong(f"its bias is changed twice, by {' and '.join(self.tensors[part].name for part in parts)}")
            return None
        self._shaped(parts[0], target.shape)
        factor = 1.0
        if parts[0] == "up_bias" and "down" in self.tensors:
            factor = self._factor(_flat(self.tensors["down"])[0], noted=False)
        return Change(self.module.name, target, Difference(factor, self.tensors[parts[0]]), replaces=parts[0] == "bias")

    def _factor(self, rank: int, *, noted: bool = True) -> float:
        """What a product is multiplied with: alpha / rank, or what the file or PEFT's configuration says."""
        alpha, scale = self._scalar("alpha"), self._scalar("scale")
        if alpha is not None and scale is not None:
            self._wrong("it holds both an alpha and a scale")
        if self.configuration is not None:
            if problem := self.configuration.rank_problem(self.spelled, rank):
                self._wrong(problem)
            configured = self.configuration.factor(self.spelled, rank)
            own = scale if scale is not None else None if alpha is None else alpha / rank
            if own not in (None, configured):
                self._wrong(f"its tensors ask for a factor of {own:g}, and its configuration for {configured:g}")
            factor = configured
        else:
            factor = scale if scale is not None else 1.0 if alpha is None else alpha / rank
        if factor == 0 and noted:
            self.notes.append(f"{self.spelled}: an alpha of 0, so nothing is added there")
        return factor

    def _scalar(self, part: str) -> float | None:
        tensor = self.tensors.get(part)
        if tensor is None:
            return None
        if tensor.size != 1:
            self._wrong(f"{tensor.name} is {list(tensor.shape)} and must be one number")
            return None
        value = float(numbers(tensor, self.files)[0, 0])
        if not np.isfinite(value):
            self._wrong(f"{tensor.name} is {value} and must be a finite number")
            return None
        return value

    def _complete(self, *parts: str) -> bool:
        missing = [part for part in parts if part not in self.tensors]
        if missing:
            there = [tensor.name for part, tensor in self.tensors.items() if part not in _SCALARS]
            words = {"down": "lora_A (lora_down)", "up": "lora_B (lora_up)"}
            self._wrong(f"{', '.join(there)} without its {' and '.join(words.get(part, part) for part in missing)}")
        return not missing

    def _shaped(self, part: str, wanted: tuple[int, ...]) -> None:
        tensor = self.tensors[part]
        if _flat(tensor) != wanted:
            self._wrong(
                f"{tensor.name} is {list(tensor.shape)} and must be {list(wanted)}" + self._hint(_flat(tensor), wanted)
            )

    def _hint(self, found: tuple[int, ...], wanted: tuple[int, ...] | None = None) -> str:
        """What rows of another number are, where they are those of another module."""
        target = self.module.weight
        if target is None or not found or (wanted is not None and wanted[0] != target.shape[0]):
            return ""
        rows = target.shape[0]
        if found[0] == 3 * rows and self.module.name.endswith((".to_q", ".to_k", ".to_v")):
            return "; those are the rows of query, key and value together, whose module is attention.qkv"
        if 3 * found[0] == rows and self.module.name.endswith(".qkv"):
            return (
                "; those are the rows of one of query, key and value, whose modules are attention.to_q, to_k and to_v"
            )
        return ""

    def _wrong(self, problem: str) -> None:
        line = f"{self.spelled}: {problem}"
        if line not in self.problems:
            self.problems.append(line)


def _flat(tensor: StoredTensor) -> tuple[int, ...]:
    """Its shape, without the ones that a convolution of one pixel has behind the two dimensions of a matrix."""
    shape = tensor.shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
