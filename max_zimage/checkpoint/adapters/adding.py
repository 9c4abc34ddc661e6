"""The transform that adds adapters to the weights of a checkpoint: in float32, in the rows of the files, rounded once.

All adapters of a set see the checkpoint's own weight, and what they add is summed before it meets the weight, so their
order says nothing. What changes no number leaves the checkpoint's tensors as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import fsum, isfinite, prod

import numpy as np
from typing_extensions import override

from max_zimage.checkpoint.adapters.adapter import Adapter
from max_zimage.checkpoint.adapters.changes import Added, Change, blocks
from max_zimage.checkpoint.adapters.modules import Stretch, parameter_table, targets
from max_zimage.checkpoint.numbers import Bits, FloatArray, round_to
from max_zimage.checkpoint.tensors import Files, Source, Tensor, at_once
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.errors import AdapterError

Made = Callable[[], FloatArray]


@dataclass(frozen=True)
class Place:
    """Rows of a checkpoint's tensor.

    Attributes:
        tensor: The tensor.
        begin: The first row.
        end: The row behind the last one.
    """

    tensor: Tensor
    begin: int
    end: int


@dataclass(frozen=True)
class Contribution:
    """What one adapter adds to a stretch of rows.

    Attributes:
        digest: The adapter's, so that another content under the same name is another contribution.
        scale: The user's.
        change: Of a module that has the stretch.
        stretch: Where the stretch is in the module.
        whole: Where the module's own weight stands, stretch by stretch; only where all of it is needed.
    """

    digest: str
    scale: float
    change: Change
    stretch: Stretch
    whole: tuple[Place, ...]

    def ready(self, files: Files) -> Added:
        """Read what every row needs; the rows that it then takes count from the stretch's first."""

        def whole(begin: int, end: int) -> FloatArray:
            for stretch, place in zip(self.change.target.stretches, self.whole, strict=True):
                if stretch.begin <= begin < stretch.end:
                    shift = place.begin - stretch.begin
                    return _rows(place.tensor, begin + shift, end + shift, files)
            raise AssertionError(f"no stretch of {self.change.module} has row {begin}")

        added, first = self.change.ready(files, self.scale, whole), self.stretch.begin
        return lambda begin, end, weight: added(begin + first, end + first, weight)


@dataclass(frozen=True)
class Changed:
    """Rows of a tensor that adapters change.

    Attributes:
        begin: The first row in the tensor.
        end: The row behind the last one.
        contributions: What they add; summed in this order.
    """

    begin: int
    end: int
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True)
class Adapted(Tensor):
    """A tensor of a checkpoint with adapters added.

    Attributes:
        base: As the checkpoint has it.
        changed: Its rows that differ, in order.
    """

    base: Tensor
    changed: tuple[Changed, ...]

    @property
    @override
    def storage(self) -> str:
        return self.base.storage

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        values = np.concatenate([made() for _, made in self._pieces(begin, end, files)])
        return values.reshape(end - begin, *self.shape[1:])

    @override
    def fill(self, target: Bits, files: Files) -> None:
        width = prod(self.shape[1:])

        def fill_piece(piece: tuple[int, Made]) -> None:
            begin, values = piece[0], piece[1]()
            round_to(target[begin * width : begin * width + values.size], values.reshape(-1))

        at_once(fill_piece, list(self._pieces(0, self.shape[0], files)))

    def _pieces(self, begin: int, end: int, files: Files) -> Iterator[tuple[int, Made]]:
        """First row of consecutive pieces that make up the rows asked for, and what makes their float32 [rows, width].

        What all pieces of a part need is read before the first; they may then be made at the same time.
        """
        _ = files[self.base.file]  # mapped once, before threads look for it
        done = begin
        for part in self.changed:
            yield from self._unchanged(done, min(part.begin, end), files)
            yield from self._of_part(part, max(begin, part.begin), min(end, part.end), files)
            done = max(done, min(part.end, end))
        yield from self._unchanged(done, end, files)

    def _unchanged(self, begin: int, end: int, files: Files) -> Iterator[tuple[int, Made]]:
        for first, last in blocks(begin, end, prod(self.shape[1:])):
            yield first, partial(_rows, self.base, first, last, files)

    def _of_part(self, part: Changed, begin: int, end: int, files: Files) -> Iterator[tuple[int, Made]]:
        if begin >= end:
            return
        ready = [each.ready(files) for each in part.contributions]
        for first, last in blocks(part.begin, part.end, prod(self.shape[1:])):
            if first < end and last > begin:
                shown = slice(max(begin - first, 0), end - first)
                yield max(first, begin), partial(self._summed, part, ready, first, last, shown, files)

    def _summed(
        self, part: Changed, ready: Sequence[Added], first: int, last: int, shown: slice, files: Files
    ) -> FloatArray:
        weight = _rows(self.base, first, last, files)
        with np.errstate(all="ignore"):  # what comes of it is looked at
            added = ready[0](first - part.begin, last - part.begin, weight)
            for other in ready[1:]:
                added = added + other(first - part.begin, last - part.begin, weight)
            summed = weight + added
        if not np.isfinite(summed).all():
            modules = ", ".join(sorted({each.change.module for each in part.contributions}))
            raise AdapterError(
                f"{self.name}: with what adapters add at {modules} some weights are infinite or no numbers; "
                "use a scale nearer to 0, or another file"
            )
        return summed[shown]


@dataclass(frozen=True)
class AddedAdapters:
    """The transform.

    Attributes:
        adapters: Each once, with its scale, which is not 0; in the order of their digests.
        component: Whose tensors it takes.
    """

    adapters: tuple[tuple[Adapter, float], ...]
    component: str

    def __call__(self, source: Source) -> Source:
        """Put tensors with the adapters added in the place of those that are changed.

        Raises:
            AdapterError: If an adapter's file is another one than when it was opened, or the checkpoint lacks a tensor.
        """
        wanted = self._by_tensor()
        if not wanted:
            return source
        for adapter, _ in self.adapters:
            adapter.check_unchanged()
        places = self._places(source)
        if absent := sorted(wanted.keys() - places.keys()):
            raise AdapterError(f"{self.component}: an adapter changes {', '.join(absent)}, which the checkpoint lacks")
        parts: dict[str, list[Changed]] = {}
        for name, changes in wanted.items():
            place = places[name]
            contributions = tuple(_contribution(*each, places) for each in changes)
            parts.setdefault(place.tensor.name, []).append(Changed(place.begin, place.end, contributions))
        adapted = {name: _adapted(source.tensors[name], changed) for name, changed in parts.items()}
        return replace(source, tensors={**source.tensors, **adapted})

    def _by_tensor(self) -> Mapping[str, list[tuple[str, float, Change, Stretch]]]:
        """What is added to every tensor, by diffusers' name."""
        wanted: dict[str, list[tuple[str, float, Change, Stretch]]] = {}
        for adapter, scale in self.adapters:
            for changes in adapter.modules.get(self.component, {}).values():
                for change in changes:
                    for stretch in () if change.is_nothing else change.target.stretches:
                        wanted.setdefault(stretch.name, []).append((adapter.digest, scale, change, stretch))
        return wanted

    def _places(self, source: Source) -> Mapping[str, Place]:
        """Where the checkpoint's files have every tensor, by diffusers' name."""
        specs = self.adapters[0][0].specs
        places: dict[str, Place] = {}
        for prefix in parameter_table(specs, self.component).prefixes:
            for name, target in targets(specs, self.component).items():
                if (tensor := source.tensors.get(prefix + name)) is not None:
                    for stretch in target.stretches:
                        places.setdefault(stretch.name, Place(tensor, stretch.begin, stretch.end))
        return places


def added(adapters: Sequence[tuple[Adapter, float]], component: str) -> Transform:
    """Add adapters to a component's weights.

    Args:
        adapters: Each with its scale: 1 for as it was trained, 0 for nothing at all, below 0 for the opposite. One that
            is there twice has the sum of its scales. Their order says nothing.
        component: "transformer" or "text_encoder"; of another one nothing changes.

    Returns:
        A transform. Equal sets make equal tensors, and what is not changed stays the tensor that it was.

    Raises:
        ValueError: If a scale is infinite or no number.
    """
    scales: dict[str, list[float]] = {}
    for adapter, scale in adapters:
        if not isfinite(scale):
            raise ValueError(f"the scale of {adapter.name} must be a finite number, got {scale}")
        scales.setdefault(adapter.digest, []).append(scale)
    summed = {digest: fsum(each) for digest, each in scales.items()}
    by_digest = {adapter.digest: adapter for adapter, _ in sorted(adapters, key=lambda each: str(each[0].path))}
    return AddedAdapters(
        tuple((by_digest[digest], summed[digest]) for digest in sorted(summed) if summed[digest]), component
    )


def _contribution(
    digest: str, scale: float, change: Change, stretch: Stretch, places: Mapping[str, Place]
) -> Contribution:
    whole = tuple(places[each.name] for each in change.target.stretches) if change.needs_whole else ()
    return Contribution(digest, scale, change, stretch, whole)


def _adapted(base: Tensor, changed: Sequence[Changed]) -> Adapted:
    in_order = tuple(sorted(changed, key=lambda part: part.begin))
    return Adapted(base.file, base.name, base.dtype, base.shape, base, in_order)


def _rows(tensor: Tensor, begin: int, end: int, files: Files) -> FloatArray:
    return tensor.rows(begin, end, files).reshape(end - begin, -1)
