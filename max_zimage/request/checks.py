"""Checks of what a caller asks for, each with its message: what was given, what is allowed, what to do.

Nothing here rounds, shortens or drops a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Concatenate, Literal, ParamSpec, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from max_zimage.errors import Item, Problem, RequestError
from max_zimage.request.limits import Limits
from max_zimage.request.modes import REFUSE
from max_zimage.sampling.positions import PIXELS_PER_TOKEN
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache, TaylorSeer, parse_step_cache

OutputType = Literal["pil", "np", "latent"]
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)

P = ParamSpec("P")
T = TypeVar("T")

SMALLEST, LARGEST = (float(each) for each in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class Problems:
    """Collects the problems of a request, so that all are reported together."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def check(self, fallback: T, check: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a check; keep what it finds wrong and return the fallback if it fails."""
        try:
            return check(*args, **kwargs)
        except RequestError as error:
            self.found.extend(error.problems)
            return fallback

    def optional(
        self,
        check: Callable[Concatenate[str, object, P], T],
        name: str,
        value: object,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T | None:
        """Run a check of an argument that may be None; keep its message and return None if it fails."""
        return None if value is None else self.check(None, check, name, value, *args, **kwargs)

    def raise_if_any(self) -> None:
        """Raise one RequestError with every problem."""
        if self.found:
            raise RequestError(*self.found)


def whole_number(name: str | Item, value: object, *, low: int, high: int) -> int:
    """Return an integer of a range; booleans and floats are none."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        message = "{field} must be a whole number from {low} to {high}, got {given}"
        raise RequestError.of(name, message, low=low, high=high, given=shown(value))
    if not low <= value <= high:
        raise RequestError.of(
            name, "{field} must be from {low} to {high}, got {given}", low=low, high=high, given=value
        )
    return int(value)


def number(name: str | Item, value: object, *, above: bool = False, low: float = 0.0) -> float:
    """Return a finite float of at least 0, or above it, or down to a number below 0."""

    def refusal(given: object) -> RequestError:
        message = f"{{field}} must be a finite number {'above' if above else 'of at least'} {{low:g}}, got {{given}}"
        return RequestError.of(name, message, low=low, given=given)

    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise refusal(shown(value))
    try:
        found = float(value)
    except OverflowError as error:  # a whole number beyond what a float can hold
        raise refusal("a number beyond what a float can hold") from error
    if not math.isfinite(found) or found < low or (above and found == 0):
        raise refusal(value)
    return found


def ranged(
    name: str | Item,
    value: object,
    *,
    above: bool = False,
    low: float | None = None,
    high: float | None = None,
    usual: str = "",
    float32: bool = False,
    switch: bool = False,
) -> float:
    """Return a float of a range; the arguments are those of `max_zimage.request.kinds.Number`."""
    if switch and isinstance(value, (bool, np.bool_)):
        return float(value)
    found = number(name, value, above=above, low=min(low or 0.0, 0.0))
    # What float32, in which the graphs take it, makes 0 or infinite would do something else than it says.
    if float32 and found and not SMALLEST <= found <= LARGEST:
        message = "{field} must be {zero}from {low:.3g} to {high:.3g} in float32, got {given}"
        raise RequestError.of(name, message, zero="" if above else "0, or ", low=SMALLEST, high=LARGEST, given=found)
    if found < (low or 0) or (high is not None and found > high):
        rule = "{field} must be at most {high:g}, got {given}"
        if low is not None:
            rule = "{field} must be from {low:g} to {high:g}, got {given}"
        message = rule + ("; usual are {usual}" if usual else "")
        raise RequestError.of(name, message, low=low, high=high, given=found, usual=usual)
    return found


def side(name: str, value: object, limit: int) -> int:
    """Return an image side in pixels: a multiple of 16 within the limit."""
    pixels = whole_number(name, value, low=PIXELS_PER_TOKEN, high=limit)
    below = pixels // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
    if pixels != below:
        raise RequestError.of(
            name,
            "{field} must be a multiple of {step}, got {given}; the nearest are {below} and {above}",
            step=PIXELS_PER_TOKEN,
            given=pixels,
            below=below,
            above=below + PIXELS_PER_TOKEN,
        )
    return pixels


def output_type(value: object) -> OutputType:
    """Return a known form of the result."""
    for known in OUTPUT_TYPES:
        if isinstance(value, str) and value == known:
            return known
    message = "{field} must be one of {known}, got {given}"
    raise RequestError.of("output_type", message, known=", ".join(OUTPUT_TYPES), given=shown(value))


def texts(name: str, value: object, limit: int) -> tuple[str, ...]:
    """Return one or several prompts as a tuple of strings that can be encoded."""
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise RequestError.of(name, "{field} must be a string or a list of strings, got {given}", given=shown(value))
    if not 1 <= len(items) <= limit:
        raise RequestError.of(name, "{field} must hold 1 to {most} strings, got {given}", most=limit, given=len(items))
    for index, text in enumerate(items):
        one = Item(name, f" {index}")
        text_of(one, text)
    return tuple(items)


def text_of(name: str | Item, value: object) -> str:
    """Return a string that can be encoded."""
    if not isinstance(value, str):
        raise RequestError.of(name, "{field} must be a string, got {given}", given=shown(value))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = "{field} holds half of a surrogate pair at character {place}, which is no text; remove it"
        raise RequestError.of(name, message, place=error.start) from error
    return value


def sigmas(name: str, value: object, max_steps: int) -> tuple[float, ...]:
    """Return noise levels in (0, 1] that fall at every step."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= max_steps:
        message = "{field} must be a list of 1 to {most} numbers, got {given}"
        raise RequestError.of(name, message, most=max_steps, given=shown(value))
    levels = [number(Item(name, f"[{index}]"), item) for index, item in enumerate(value)]
    if 0 in levels:
        message = "{field} must be above 0, got 0 at position {place}; the final 0 is added for you"
        raise RequestError.of(name, message, place=levels.index(0))
    if min(levels) < SMALLEST:
        message = "{field} must be at least {low:.3g}, the smallest of float32, got {given}"
        raise RequestError.of(name, message, low=SMALLEST, given=min(levels))
    if levels[0] > 1:
        raise RequestError.of(name, "{field} must be at most 1, got {given}; 1 is pure noise", given=levels[0])
    # Compared in float32, in which the step lengths are computed: an equal pair would be a step of no length.
    rises = np.diff(np.asarray(levels, np.float32)) >= 0
    if rises.any():
        index = int(rises.argmax())
        message = "{field} must fall at every step, got {before} and then {after} at position {place}"
        raise RequestError.of(name, message, before=levels[index], after=levels[index + 1], place=index + 1)
    return tuple(levels)


def array(name: str | Item, value: object, shape: tuple[int | None, ...], meaning: str) -> npt.NDArray[np.float32]:
    """Return a finite float32 numpy array of a shape; None stands for any length of at least 1."""

    def refusal(rest: str, **values: object) -> RequestError:
        return RequestError.of(
            name, "{field} must be a float32 numpy array {meaning}" + rest, meaning=meaning, **values
        )

    if not isinstance(value, np.ndarray):
        raise refusal(", got {given}", given=type(value).__name__)
    if value.dtype != np.float32:
        raise refusal(", got {given}; convert it with .astype(numpy.float32)", given=value.dtype)
    fits = value.ndim == len(shape) and all(
        size == allowed if allowed is not None else size > 0 for size, allowed in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise refusal(", got shape {given}", given=list(value.shape))
    if not np.isfinite(value).all():
        raise refusal(" of finite values, got {bad} that are not", bad=int((~np.isfinite(value)).sum()))
    return value


def resize(value: object, image: object) -> bool | None:
    """Return whether an image may be resized; None where the caller does not offer it."""
    if value is None or isinstance(value, (bool, np.bool_)):
        if value and image is None:
            message = "{field} is set without an image; give the image too, or leave it out"
            raise RequestError.of("resize", message)
        return None if value is None else bool(value)
    raise RequestError.of("resize", "{field} must be true or false, got {given}", given=shown(value))


def step_cache(value: object, default: StepCache | None) -> StepCache | None:
    """Return a step cache, from one or from its written form; the default for None."""
    if value is None:
        return default
    if isinstance(value, (FirstBlockCache, TaylorSeer)):
        return value
    if not isinstance(value, str):
        message = "{field} must be a FirstBlockCache, a TaylorSeer or a string, got {given}"
        raise RequestError.of("step_cache", message, given=shown(value))
    try:
        return parse_step_cache(value)
    except ValueError as error:
        raise RequestError.of("step_cache", "{field}: {reason}", reason=error) from error


def embeddings(name: str, value: object, limits: Limits) -> tuple[npt.NDArray[np.float32], ...]:
    """Return text features, one array [tokens, caption_dim] a prompt."""
    if not isinstance(value, (list, tuple)) or not value:
        message = "{field} must be a list of arrays [tokens, {width}], one a prompt, got {given}"
        raise RequestError.of(name, message, width=limits.caption_dim, given=shown(value))
    features = tuple(
        array(Item(name, f" {index}"), item, (None, limits.caption_dim), f"[tokens, {limits.caption_dim}]")
        for index, item in enumerate(value)
    )
    for index, feature in enumerate(features):
        if len(feature) > limits.max_tokens:
            message = "{field} has {given} tokens, at most {most} are supported"
            raise RequestError.of(Item(name, f" {index}"), message, given=len(feature), most=limits.max_tokens)
    return features


def check_tokens(count: int, mode: str, limit: int, limits: Limits, which: str, field: str | None) -> None:
    """`check_token_count` of a text of a request, which is read whole where its long_prompt_mode says so.

    Args:
        count: Tokens of the text, chat template included.
        mode: Long_prompt_mode of the request.
        limit: Its max_sequence_length.
        limits: What the checkpoint can do at most.
        which: What the message calls the text.
        field: The field that is to blame.

    Raises:
        RequestError: If there are too many tokens.
    """
    if mode == REFUSE:
        check_token_count(count, limit, which, limits.max_tokens, field)
    elif count > limits.max_positions:
        message = "{which} has {given} tokens, and the text encoder reads at most {most}; shorten it"
        raise RequestError.of(field, message, which=which, given=count, most=limits.max_positions)


def check_token_count(count: int, limit: int, which: str, most: int, field: str | None = None) -> None:
    """Refuse a prompt of too many tokens, rather than cut it.

    Args:
        count: Tokens of the prompt, chat template included.
        limit: The request's max_sequence_length.
        which: What the message calls the prompt, such as "prompt 0".
        most: The most that max_sequence_length may be raised to.
        field: The field that is to blame, or None.

    Raises:
        RequestError: If there are more tokens than the limit.
    """
    if count > limit:
        remedy = " or raise {name[max_sequence_length]} (up to {most})" if limit < count <= most else ""
        message = "{which} has {given} tokens, at most {limit} are allowed; shorten it" + remedy
        raise RequestError.of(field, message, which=which, given=count, limit=limit, most=most)


def shown(value: object) -> str:
    """A value for a message: cut where long, with its type where quotes do not tell that it is a string."""
    cut = text if len(text := repr(value)) <= 60 else text[:57] + "..."
    return cut if isinstance(value, str) else f"{cut} ({type(value).__name__})"
