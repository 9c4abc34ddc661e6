"""Kinds of request fields that hold several values; see `max_zimage.request.kinds`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from max_zimage.request.kinds import Kind, Number

if TYPE_CHECKING:
    from max_zimage.request.limits import Limits


_MOST = 10_000
"""Where ranges end that are written out: a mistyped one is to be refused, not counted up to."""


@dataclass(frozen=True, kw_only=True)
class NumberOrMany(Number):
    """A number, or one for each step; a request holds a float or a tuple of them."""

    schema: ClassVar[Any] = float | list[float]

    @override
    def check(self, name: str, value: object, limits: Limits) -> Any:
        from max_zimage.errors import Item
        from max_zimage.request.checks import ranged

        if not isinstance(value, (list, tuple)) or not value:
            return super().check(name, value, limits)
        rules = dataclasses.asdict(self)
        return tuple(ranged(Item(name, f"[{index}]"), each, **rules) for index, each in enumerate(value))

    @override
    def of_flag(self, text: str) -> object:
        values = [float(each) for each in text.split(",")]
        return values if len(values) > 1 else values[0]

    @override
    def encode(self, value: Any) -> object:
        return list(value) if isinstance(value, tuple) else value

    @override
    def decode(self, value: Any) -> Any:
        return tuple(map(super().decode, value)) if isinstance(value, list) else super().decode(value)

    @override
    def is_kept(self, value: object) -> bool:
        return value not in ([], ())


@dataclass(frozen=True, kw_only=True)
class Levels(Kind):
    """Noise levels that fall; a request holds a tuple of floats."""

    plain: ClassVar[type] = float
    schema: ClassVar[Any] = list[float]

    @override
    def check(self, name: str, value: object, limits: Limits) -> tuple[float, ...]:
        from max_zimage.request.checks import sigmas

        return sigmas(name, value, limits.max_steps)

    @override
    def of_flag(self, text: str) -> object:
        return [float(each) for each in text.split(",")]

    @override
    def encode(self, value: tuple[float, ...] | None) -> object:
        return None if value is None else list(value)

    @override
    def decode(self, value: Any) -> tuple[float, ...]:
        if not isinstance(value, list):
            raise ValueError(f"must be a list of numbers, got {value!r}")
        return tuple(Number().decode(level) for level in value)

    @override
    def is_kept(self, value: object) -> bool:
        return value not in ([], ())


@dataclass(frozen=True, kw_only=True)
class Pair(Kind):
    """Two shares, from 0 to 1."""

    plain: ClassVar[type] = float
    fallback: ClassVar[Any] = (0.0, 1.0)
    schema: ClassVar[Any] = list[float]
    values: ClassVar[int] = 2

    @override
    def check(self, name: str, value: object, limits: Limits) -> tuple[float, ...]:
        from max_zimage.request.value_checks import pair

        return pair(name, value)

    @override
    def read(self, text: str) -> object:
        try:
            return [float(each) for each in text.replace(",", " ").split()]
        except ValueError:
            return text

    @override
    def encode(self, value: tuple[float, ...]) -> object:
        return list(value)

    @override
    def decode(self, value: Any) -> tuple[float, ...]:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"must be a list of two numbers, got {value!r}")
        return tuple(Number().decode(each) for each in value)

    @override
    def is_kept(self, value: object) -> bool:
        return self.is_decoded(value)


@dataclass(frozen=True, kw_only=True)
class Margins(Kind):
    """Four whole numbers from 0, of pixels to the left, at the top, to the right and at the bottom; not all are 0.

    Attributes:
        limits: The attributes of `Limits` that say how many there may be across and upright.
    """

    schema: ClassVar[Any] = list[int]
    limits: tuple[str, str]

    @override
    def check(self, name: str, value: object, limits: Limits) -> tuple[int, ...]:
        from max_zimage.request.value_checks import margins

        across, upright = (int(getattr(limits, each)) for each in self.limits)
        return margins(name, value, across, upright)

    @override
    def of_flag(self, text: str) -> object:
        return [int(each) for each in text.split(",")]

    @override
    def encode(self, value: tuple[int, ...] | None) -> object:
        return None if value is None else list(value)

    @override
    def decode(self, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) != 4 or not all(type(each) is int for each in value):
            raise ValueError(f"must be a list of four whole numbers, got {value!r}")
        return tuple(value)

    @override
    def is_kept(self, value: object) -> bool:
        return self.is_decoded(value)


@dataclass(frozen=True, kw_only=True)
class Wholes(Kind):
    """Whole numbers from 0, below what the attribute `limit` of `Limits` says; a request holds a sorted tuple."""

    schema: ClassVar[Any] = list[int]
    limit: str

    @override
    def check(self, name: str, value: object, limits: Limits) -> tuple[int, ...]:
        from max_zimage.request.value_checks import wholes

        return wholes(name, value, int(getattr(limits, self.limit)))

    @override
    def of_flag(self, text: str) -> object:
        found: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            begin, end = int(first), int(last or first)
            if not 0 <= begin <= end < _MOST:
                raise ValueError(f"a range must rise and end below {_MOST}, got {part!r}")
            found += range(begin, end + 1)
        return found

    @override
    def encode(self, value: tuple[int, ...] | None) -> object:
        return None if value is None else list(value)

    @override
    def decode(self, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or not all(type(each) is int for each in value):
            raise ValueError(f"must be a list of whole numbers, got {value!r}")
        return tuple(value)
