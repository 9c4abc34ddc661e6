"""Checks of what a caller asks for, each with its message: what was given, what is allowed, what to do.

Nothing here rounds, shortens or drops a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from max_zimage.errors import RequestError
from max_zimage.request.limits import Limits
from max_zimage.sampling.noise import MAX_SEED
from max_zimage.sampling.positions import PIXELS_PER_TOKEN
from max_zimage.sampling.schedule import MAX_SHIFT, MIN_SHIFT
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache, TaylorSeer, parse

OutputType = Literal["pil", "np", "latent"]
OUTPUT_TYPES: tuple[OutputType, ...] = ("pil", "np", "latent")

P = ParamSpec("P")
T = TypeVar("T")


MAX_GUIDANCE = 1000.0
SMALLEST, LARGEST = (float(each) for each in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class Problems:
    """Collects the problems of a request, so that all are reported together."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def check(self, fallback: T, check: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a check; keep its message and return the fallback if it fails."""
        try:
            return check(*args, **kwargs)
        except RequestError as error:
            self.messages.append(str(error))
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
        """Raise one RequestError with every message."""
        if len(self.messages) == 1:
            raise RequestError(self.messages[0])
        if self.messages:
            raise RequestError("\n- ".join([f"the request has {len(self.messages)} problems:", *self.messages]))


def whole_number(name: str, value: object, *, low: int, high: int) -> int:
    """Return an integer of a range; booleans and floats are none."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise RequestError(f"{name} must be a whole number from {low} to {high}, got {_shown(value)}")
    if not low <= value <= high:
        raise RequestError(f"{name} must be from {low} to {high}, got {value}")
    return int(value)


def count(name: str, value: object, high: int) -> int:
    """Return a number of things, at least one."""
    return whole_number(name, value, low=1, high=high)


def number(name: str, value: object, *, above: bool = False) -> float:
    """Return a finite float of at least 0, or above it."""
    rule = f"{name} must be a finite number {'above' if above else 'of at least'} 0"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise RequestError(f"{rule}, got {_shown(value)}")
    try:
        found = float(value)
    except OverflowError as error:  # a whole number beyond what a float can hold
        raise RequestError(f"{rule}, got a number beyond what a float can hold") from error
    if not math.isfinite(found) or found < 0 or (above and found == 0):
        raise RequestError(f"{rule}, got {value}")
    return found


def number_float32(name: str, value: object) -> float:
    """Return a float of at least 0 that float32, in which the graphs take it, neither makes 0 nor infinite."""
    found = number(name, value)
    if found and not SMALLEST <= found <= LARGEST:
        raise RequestError(f"{name} must be 0, or from {SMALLEST:.3g} to {LARGEST:.3g} in float32, got {found}")
    return found


def positive(name: str, value: object) -> float:
    """Return a finite float above 0."""
    return number(name, value, above=True)


def shift(value: object) -> float:
    """Return a flow shift with which float32 still tells the noise levels of all steps apart."""
    found = positive("shift", value)
    if not MIN_SHIFT <= found <= MAX_SHIFT:
        raise RequestError(f"shift must be from {MIN_SHIFT} to {MAX_SHIFT:g}, got {found}; usual are 1 to 10")
    return found


def guidance(value: object) -> float:
    """Return a guidance scale that float32 latents survive."""
    found = number_float32("guidance_scale", value)
    if found > MAX_GUIDANCE:
        raise RequestError(f"guidance_scale must be at most {MAX_GUIDANCE:g}, got {found}; usual are 0 to 10")
    return found


def side(name: str, value: object, limit: int) -> int:
    """Return an image side in pixels: a multiple of 16 within the limit."""
    pixels = whole_number(name, value, low=PIXELS_PER_TOKEN, high=limit)
    below = pixels // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
    if pixels != below:
        raise RequestError(
            f"{name} must be a multiple of {PIXELS_PER_TOKEN}, got {pixels}; "
            f"the nearest are {below} and {below + PIXELS_PER_TOKEN}"
        )
    return pixels


def normalization(value: object) -> float:
    """Return the factor of the guidance's norm limit: False is 0 (off), True is 1."""
    if isinstance(value, (bool, np.bool_)):
        return float(value)
    return number_float32("cfg_normalization", value)


def seed(value: object) -> int:
    """Return a seed of the noise generator."""
    return whole_number("seed", value, low=0, high=MAX_SEED)


def output_type(value: object) -> OutputType:
    """Return a known form of the result."""
    for known in OUTPUT_TYPES:
        if isinstance(value, str) and value == known:
            return known
    raise RequestError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {_shown(value)}")


def texts(name: str, value: object, limit: int) -> tuple[str, ...]:
    """Return one or several prompts as a tuple of strings that can be encoded."""
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise RequestError(f"{name} must be a string or a list of strings, got {_shown(value)}")
    if not 1 <= len(items) <= limit:
        raise RequestError(f"{name} must hold 1 to {limit} strings, got {len(items)}")
    for index, text in enumerate(items):
        if not isinstance(text, str):
            raise RequestError(f"{name} {index} must be a string, got {_shown(text)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{name} {index} holds half of a surrogate pair at character {error.start}, which is no text; remove it"
            ) from error
    return tuple(items)


def sigmas(name: str, value: object, max_steps: int) -> tuple[float, ...]:
    """Return noise levels in (0, 1] that fall at every step."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= max_steps:
        raise RequestError(f"{name} must be a list of 1 to {max_steps} numbers, got {_shown(value)}")
    levels = [number(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if 0 in levels:
        raise RequestError(f"{name} must be above 0, got 0 at position {levels.index(0)}; the final 0 is added for you")
    if min(levels) < SMALLEST:
        raise RequestError(f"{name} must be at least {SMALLEST:.3g}, the smallest of float32, got {min(levels)}")
    if levels[0] > 1:
        raise RequestError(f"{name} must be at most 1, got {levels[0]}; 1 is pure noise")
    # Compared in float32, in which the step lengths are computed: an equal pair would be a step of no length.
    rises = np.diff(np.asarray(levels, np.float32)) >= 0
    if rises.any():
        index = int(rises.argmax())
        raise RequestError(
            f"{name} must fall at every step, got {levels[index]} and then {levels[index + 1]} at position {index + 1}"
        )
    return tuple(levels)


def array(name: str, value: object, shape: tuple[int | None, ...], meaning: str) -> npt.NDArray[np.float32]:
    """Return a finite float32 numpy array of a shape; None stands for any length of at least 1."""
    wanted = f"{name} must be a float32 numpy array {meaning}"
    if not isinstance(value, np.ndarray):
        raise RequestError(f"{wanted}, got {type(value).__name__}")
    if value.dtype != np.float32:
        raise RequestError(f"{wanted}, got {value.dtype}; convert it with .astype(numpy.float32)")
    fits = value.ndim == len(shape) and all(
        size == allowed if allowed is not None else size > 0 for size, allowed in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise RequestError(f"{wanted}, got shape {list(value.shape)}")
    if not np.isfinite(value).all():
        raise RequestError(f"{wanted} of finite values, got {int((~np.isfinite(value)).sum())} that are not")
    return value


def resize(value: object, image: object) -> bool | None:
    """Return whether an image may be resized; None where the caller does not offer it."""
    if value is None or isinstance(value, (bool, np.bool_)):
        if value and image is None:
            raise RequestError("resize is set without an image; give the image too, or leave it out")
        return None if value is None else bool(value)
    raise RequestError(f"resize must be true or false, got {_shown(value)}")


def strength(value: object) -> float:
    """Return how far a picture goes from the image it begins with: above 0, at most 1."""
    found = positive("strength", value)
    if found > 1:
        raise RequestError(f"strength must be at most 1, got {found}")
    return found


def step_cache(value: object, default: StepCache | None) -> StepCache | None:
    """Return a step cache, from one or from its written form; the default for None."""
    if value is None:
        return default
    if isinstance(value, (FirstBlockCache, TaylorSeer)):
        return value
    if not isinstance(value, str):
        raise RequestError(f"step_cache must be a FirstBlockCache, a TaylorSeer or a string, got {_shown(value)}")
    try:
        return parse(value)
    except ValueError as error:
        raise RequestError(f"step_cache: {error}") from error


def embeddings(name: str, value: object, limits: Limits) -> tuple[npt.NDArray[np.float32], ...]:
    """Return text features, one array [tokens, caption_dim] a prompt."""
    if not isinstance(value, (list, tuple)) or not value:
        raise RequestError(
            f"{name} must be a list of arrays [tokens, {limits.caption_dim}], one a prompt, got {_shown(value)}"
        )
    features = tuple(
        array(f"{name} {index}", item, (None, limits.caption_dim), f"[tokens, {limits.caption_dim}]")
        for index, item in enumerate(value)
    )
    for index, feature in enumerate(features):
        if len(feature) > limits.max_tokens:
            raise RequestError(f"{name} {index} has {len(feature)} tokens, at most {limits.max_tokens} are supported")
    return features


def check_token_count(count: int, limit: int, which: str, most: int) -> None:
    """Refuse a prompt of too many tokens, rather than cut it.

    Args:
        count: Tokens of the prompt, chat template included.
        limit: The request's max_sequence_length.
        which: What the message calls the prompt, such as "prompt 0".
        most: The most that max_sequence_length may be raised to.

    Raises:
        RequestError: If there are more tokens than the limit.
    """
    if count > limit:
        remedy = f"shorten it or raise max_sequence_length (up to {most})" if limit < count <= most else "shorten it"
        raise RequestError(f"{which} has {count} tokens, at most {limit} are allowed; {remedy}")


def _shown(value: object) -> str:
    """A value for a message: cut where long, with its type where the value alone would not tell."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
