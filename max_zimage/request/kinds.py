"""Kinds of request fields: how one is read, checked and written as JSON.

A kind says what a field may hold; `max_zimage.request.fields` says which field is of which kind. Checks are imported
when something is checked: the command line's help reads the table, and needs no numpy for it.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

if TYPE_CHECKING:
    from max_zimage.request.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a field may hold.

    Attributes:
        plain: The type that stands for it in JSON and on the command line; a flag without a value for bool.
        is_array: Whether it is numpy's, and travels beside the JSON.
        fallback: What stands in for a value that does not do, so that other checks can go on.
        schema: Its type in the bodies of HTTP, where that is another than `plain`.
        values: Words that a flag takes.
    """

    plain: ClassVar[type] = str
    is_array: ClassVar[bool] = False
    fallback: ClassVar[Any] = None
    schema: ClassVar[Any] = None
    values: ClassVar[int] = 1

    def check(self, name: str, value: object, limits: Limits) -> Any:
        """Return what a request holds for a value that was given.

        Args:
            name: The field.
            value: What was given; not None.
            limits: What the checkpoint can do at most.

        Raises:
            RequestError: If it does not do.
        """
        raise NotImplementedError(f"{type(self).__name__} is checked together with other fields")

    def read(self, text: str) -> object:
        """What a text stands for, where there is only text to write it in; the text itself if for nothing."""
        if self.plain is bool:
            return {"true": True, "false": False}.get(text, text)
        try:
            return self.of_flag(text)
        except ValueError:
            return text

    def of_flag(self, text: str) -> object:
        """What a word on the command line stands for.

        Raises:
            ValueError: If for nothing.
        """
        value: object = self.plain(text)
        return value

    def encode(self, value: Any) -> object:
        """What a request holds, maybe None, as JSON has it."""
        return value

    def keep(self, value: Any) -> object:
        """The same for the parameters that pictures carry, which leave their maker's machine."""
        return self.encode(value)

    def is_kept(self, value: object) -> bool:
        """Whether a JSON value of the right type, not None, is one that `keep` can have made."""
        return True

    def is_decoded(self, value: object) -> bool:
        """Whether `decode` takes a value, its lists as tuples or not; for kinds of which that says all."""
        try:
            self.decode(list(value) if isinstance(value, tuple) else value)
        except ValueError:
            return False
        return True

    def decode(self, value: Any) -> Any:
        """What `encode` was given.

        Raises:
            ValueError: If it cannot have made this value.
        """
        if type(value) is not self.plain:
            raise ValueError(f"must be {self.plain.__name__}, got {value!r}")
        return value


@dataclass(frozen=True, kw_only=True)
class Whole(Kind):
    """A whole number.

    Attributes:
        low: The smallest.
        high: The largest, or the attribute of `Limits` that holds it.
    """

    plain: ClassVar[type] = int
    fallback: ClassVar[Any] = 1
    low: int = 1
    high: int | str

    @override
    def check(self, name: str, value: object, limits: Limits) -> int:
        from max_zimage.request.checks import whole_number

        high = self.high if isinstance(self.high, int) else int(getattr(limits, self.high))
        return whole_number(name, value, low=self.low, high=high)


@dataclass(frozen=True, kw_only=True)
class Side(Kind):
    """A side of a picture in pixels; `limit` is the longest, or the attribute of `Limits` that holds it."""

    plain: ClassVar[type] = int
    fallback: ClassVar[Any] = 16
    limit: int | str

    @override
    def check(self, name: str, value: object, limits: Limits) -> int:
        from max_zimage.request.checks import side

        return side(name, value, self.limit if isinstance(self.limit, int) else int(getattr(limits, self.limit)))


@dataclass(frozen=True, kw_only=True)
class Number(Kind):
    """A finite number, of at least 0 unless `low` is below.

    Attributes:
        above: Whether 0 is refused.
        low: The smallest; None where `above` says all.
        high: The largest; None for any.
        usual: The usual ones, for messages.
        float32: Whether float32, in which graphs take it, must neither make it 0 nor infinite.
        switch: Whether False and True stand for 0 and 1.
    """

    plain: ClassVar[type] = float
    fallback: ClassVar[Any] = 0.0
    above: bool = False
    low: float | None = None
    high: float | None = None
    usual: str = ""
    float32: bool = False
    switch: bool = False

    @override
    def check(self, name: str, value: object, limits: Limits) -> Any:
        from max_zimage.request.checks import ranged

        return ranged(name, value, **dataclasses.asdict(self))

    @override
    def decode(self, value: Any) -> float:
        # JSON writes 1.0 as 1 in some hands.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise ValueError(f"must be a number, got {str(value)[:40] if isinstance(value, int) else repr(value)}")
        return float(value)


@dataclass(frozen=True, kw_only=True)
class Switch(Kind):
    """True or false.

    Attributes:
        is_left_to_checkpoint: Whether the checkpoint decides where neither is said; else that is false.
    """

    plain: ClassVar[type] = bool
    fallback: ClassVar[Any] = False
    is_left_to_checkpoint: bool = False

    @override
    def check(self, name: str, value: object, limits: Limits) -> bool:
        from max_zimage.request.value_checks import switch

        return switch(name, value)


@dataclass(frozen=True, kw_only=True)
class Choice(Kind):
    """One of several words."""

    fallback: ClassVar[Any] = ""
    words: tuple[str, ...]

    @override
    def check(self, name: str, value: object, limits: Limits) -> str:
        from max_zimage.request.value_checks import one_of

        return one_of(name, value, self.words)

    @override
    def is_kept(self, value: object) -> bool:
        return value in self.words


@dataclass(frozen=True, kw_only=True)
class Text(Kind):
    """A text."""

    fallback: ClassVar[Any] = ""

    @override
    def check(self, name: str, value: object, limits: Limits) -> str:
        from max_zimage.request.checks import text_of

        return text_of(name, value)


@dataclass(frozen=True, kw_only=True)
class Texts(Kind):
    """One or several texts; a request holds a tuple of them."""

    @override
    def encode(self, value: tuple[str, ...]) -> object:
        return list(value)

    @override
    def decode(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"must be a list of strings, got {value!r}")
        return tuple(value)


@dataclass(frozen=True, kw_only=True)
class Cache(Kind):
    """A step cache, or its written form, in which "off" is None."""

    @override
    def check(self, name: str, value: object, limits: Limits) -> Any:
        from max_zimage.request.checks import step_cache

        return step_cache(value, None)

    @override
    def encode(self, value: Any) -> str:
        from max_zimage.sampling.step_cache import format_step_cache

        return format_step_cache(value)

    @override
    def decode(self, value: Any) -> Any:
        from max_zimage.sampling.step_cache import parse_step_cache

        return parse_step_cache(super().decode(value))

    @override
    def is_kept(self, value: object) -> bool:
        return self.is_decoded(value)


@dataclass(frozen=True, kw_only=True)
class FormatKind(Kind):
    """The form of a result: pictures, pixels or latents."""

    @override
    def check(self, name: str, value: object, limits: Limits) -> str:
        from max_zimage.request.checks import output_type

        return output_type(value)

    @override
    def decode(self, value: Any) -> str:
        from max_zimage.request.checks import output_type

        return output_type(value)


@dataclass(frozen=True, kw_only=True)
class Array(Kind):
    """Numbers or pixels of numpy."""

    is_array: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Features(Array):
    """Text features of each prompt; a request holds a tuple of arrays."""

    @override
    def check(self, name: str, value: object, limits: Limits) -> Any:
        from max_zimage.request.checks import embeddings

        return embeddings(name, value, limits)
