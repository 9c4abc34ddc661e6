"""Reads every number of a checkpoint and counts those that no picture survives: `max-zimage info --check-weights`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from max_zimage import progress
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.numbers import STORED
from max_zimage.checkpoint.parts import own_part
from max_zimage.checkpoint.plan import LoadPlan
from max_zimage.checkpoint.tensors import Files, Source, StoredTensor, Tensor
from max_zimage.checkpoint.transforms import transformed
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.overflow import LIMIT

_CHUNK = 1 << 22  # numbers read at a time
_READ: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BFLOAT16_OVERFLOWS = np.uint32(0x7F7F_8000).view(np.float32)  # from here on, rounding to bfloat16 makes infinity

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is wrong with the numbers of one tensor.

    Attributes:
        component: Whose it is.
        tensor: Its name in the file.
        file: The file.
        used: Whether the engine loads it.
        nan: How many numbers are none.
        positive_infinity: How many are infinite and above 0.
        negative_infinity: How many are infinite and below 0.
        overflowing: How many of the finite ones become infinite in the dtype that the model runs in.
        huge: How many of the others are beyond anything that a trained model holds, and overflow where they are used.
    """

    component: str
    tensor: str
    file: str
    used: bool
    nan: int
    positive_infinity: int
    negative_infinity: int
    overflowing: int
    huge: int

    def __str__(self) -> str:
        """One line."""
        counts = {
            "NaN": self.nan,
            "+infinity": self.positive_infinity,
            "-infinity": self.negative_infinity,
            "too large for the dtype": self.overflowing,
            f"of {LIMIT:g} and more": self.huge,
        }
        listed = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"{self.component}: {self.tensor} in {self.file}: {listed}" + ("" if self.used else " (never used)")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class WeightCheck:
    """What came of reading a checkpoint.

    Attributes:
        tensors: How many were read.
        numbers: How many numbers they hold.
        damaged: Those with numbers that no picture survives.
    """

    tensors: int
    numbers: int
    damaged: tuple[Damage, ...]


def check_weights(plans: Mapping[str, LoadPlan], dtypes: Mapping[str, ModelDtype]) -> WeightCheck:
    """Read every tensor of the files of all components, a piece at a time.

    Args:
        plans: By component; they name the files.
        dtypes: What each component runs in.

    Raises:
        OSError: If a file cannot be read.
    """
    found: list[Damage] = []
    tensors = numbers = 0
    for component, plan in plans.items():
        used = {part.name for recipe in plan.recipes for part in recipe.parts}
        found_there = own_numbers(component, open_source(plan.files)).values()
        infos = sorted(found_there, key=lambda info: (str(info.file), getattr(info, "start", 0)))
        with progress.stage(f"Reading {component}", len(infos)) as shown:
            for info in infos:
                counts, read = _counts(info, dtypes[component])
                tensors, numbers = tensors + 1, numbers + read
                if any(counts):
                    found.append(_damage(component, info, info.name in used, counts))
                shown.advance(info.name)
    return WeightCheck(tensors=tensors, numbers=numbers, damaged=tuple(found))


def own_numbers(component: str, source: Source) -> Mapping[str, Tensor]:
    """A component's tensors, decoded where they are quantized."""
    own, _ = own_part(source, component)
    return transformed(own, ()).tensors


def _damage(component: str, info: Tensor, used: bool, counts: Sequence[int]) -> Damage:
    nan, positive, negative, overflowing, huge = counts
    return Damage(
        component=component,
        tensor=info.name,
        file=str(info.file),
        used=used,
        nan=nan,
        positive_infinity=positive,
        negative_infinity=negative,
        overflowing=overflowing,
        huge=huge,
    )


def _counts(info: Tensor, dtype: ModelDtype) -> tuple[list[int], int]:
    """NaN, +infinity, -infinity, overflowing and huge numbers of a tensor, and how many it holds.

    Dtypes that are not loaded, such as whole numbers, are not looked at.
    """
    totals = [0] * 5
    if info.dtype in STORED and not (isinstance(info, StoredTensor) and info.dtype in _READ):
        return _counts_decoded(info, dtype)
    if not isinstance(info, StoredTensor) or info.dtype not in _READ:
        return totals, 0
    kind = np.dtype(_READ[info.dtype])
    left = info.nbytes // kind.itemsize
    # Read and not mapped: a file that is cut off meanwhile is an error here, and the end of the process there.
    with Path(info.file).open("rb") as stream:
        stream.seek(info.start)
        count = left
        while left:
            values = np.fromfile(stream, kind, min(left, _CHUNK))
            if not len(values):
                raise OSError(f"{info.file} ended while {info.name} was read; download or copy it again")
            left -= len(values)
            for index, number in enumerate(_of_chunk(values, info.dtype, dtype)):
                totals[index] += number
    return totals, count


def _counts_decoded(info: Tensor, dtype: ModelDtype) -> tuple[list[int], int]:
    """The same of a tensor that is made of codes."""
    totals, files = [0] * 5, Files()
    count = info.shape[0] if info.shape else 1
    step = max(1, _CHUNK * count // info.size)
    for begin in range(0, count, step):
        values = info.rows(begin, min(begin + step, count), files)
        for index, number in enumerate(_of_chunk(values, "F32", dtype)):
            totals[index] += number
    return totals, info.size


def _of_chunk(values: Numbers, file_dtype: str, dtype: ModelDtype) -> tuple[int, int, int, int, int]:
    if file_dtype == "F16":  # whose comparisons would be made in float16
        values = values.astype(np.float32)
    elif file_dtype == "BF16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    sizes = np.abs(values)
    largest = sizes.max(initial=0)  # NaN if there is one
    if largest < LIMIT:
        return 0, 0, 0, 0, 0
    finite, overflows = np.isfinite(values), _BFLOAT16_OVERFLOWS if dtype == "bfloat16" else np.finfo(np.float32).max
    over = finite & (sizes >= overflows if dtype == "bfloat16" else sizes > overflows)
    return (
        int(np.isnan(values).sum()),
        int(np.isposinf(values).sum()),
        int(np.isneginf(values).sum()),
        int(over.sum()),
        int((finite & ~over & (sizes >= LIMIT)).sum()),
    )
