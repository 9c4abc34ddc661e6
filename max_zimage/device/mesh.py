"""Several devices by name, as people write them: those that compute one picture together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

from max_zimage.device.devices import device_name, device_spec
from max_zimage.errors import RequestError
from max_zimage.graphs.model.mesh_spec import MOST

Split = Literal["tokens", "branches"]
SPLITS: tuple[Split, ...] = get_args(Split)
"""What devices share: the tokens of all branch rows, or branch rows between two halves of them, and tokens within."""

_simulated: ContextVar[bool] = ContextVar("_simulated", default=False)


@contextmanager
def simulated_mesh() -> Iterator[None]:
    """Have the CPU, named several times, stand for as many devices: for tests of what several devices compute."""
    token = _simulated.set(True)
    try:
        yield
    finally:
        _simulated.reset(token)


def mesh_names(given: str | Sequence[str], field: str = "devices") -> tuple[str, ...]:
    """Read several devices.

    Args:
        given: "gpu:0,1", "gpu:0,gpu:1", or a list of names.
        field: What was set to it, for the error.

    Returns:
        Their names, such as "gpu:0" and "gpu:1"; the first one has what is computed on one device.

    Raises:
        RequestError: If they are no names, one is unknown or not there, one is named twice, they are too few or too
            many, or a CPU is among them.
    """
    named = _written(given, field)
    names = [device_name(device_spec(name, field)) for name in _with_kinds(named)]
    if "cpu" in names and not (_simulated.get() and {*names} == {"cpu"}):
        message = "{field} are GPUs that compute together, got {given}; a CPU is one device: name it with device alone"
        raise RequestError.of(field, message, given=", ".join(named))
    twice = [name for name, count in Counter(names).items() if count > 1 and name != "cpu"]
    if twice:
        raise RequestError.of(field, "{field} must name each device once, got {twice} twice", twice=twice[0])
    if not 2 <= len(names) <= MOST:
        message = "{field} must name 2 to {most} devices, got {count}; for one take device"
        raise RequestError.of(field, message, most=MOST, count=len(names))
    return tuple(names)


def numbers_of(given: str | Sequence[str], field: str = "devices") -> tuple[int, ...]:
    """The numbers of several GPUs, which may be those of another machine: it is the one to say whether they are there.

    Args:
        given: See `mesh_names`.
        field: What was set to it, for the error.

    Raises:
        RequestError: If they are no names.
    """
    numbers = [name.partition(":")[2] or "0" for name in _with_kinds(_written(given, field))]
    return tuple(int(number) for number in numbers if number.isdecimal())


def groups_of(split: str, count: int, *, is_guided: bool, field: str = "split") -> int:
    """In how many groups devices share branch rows.

    Args:
        split: "tokens", "branches" or "auto", which is branches where a model's pictures have two of them by default.
        count: Of devices.
        is_guided: Whether they have.
        field: What was set to it, for the error.

    Raises:
        RequestError: If there is no such split, or devices in odd number cannot be halved.
    """
    if split not in ("auto", *SPLITS):
        message = "{field} must be auto, tokens or branches, got {given!r}"
        raise RequestError.of(field, message, given=split)
    if split == "branches" and count % 2:
        message = "{field} branches halves the devices, got {count}; name one more or one less, or take tokens"
        raise RequestError.of(field, message, count=count)
    return 2 if split == "branches" or (split == "auto" and is_guided and count % 2 == 0) else 1


def _written(given: object, field: str) -> list[str]:
    """The names, apart; numbers such as [0, 1] are none, for they say no kind."""
    if isinstance(given, str):
        return [each.strip() for each in given.split(",")]
    if isinstance(given, Sequence) and all(isinstance(each, str) for each in given):
        return [each.strip() for each in given]
    message = '{field} must be a text such as "gpu:0,1" or a list of names such as ["gpu:0", "gpu:1"], got {given}'
    raise RequestError.of(field, message, given=repr(given))


def _with_kinds(names: Sequence[str]) -> Iterator[str]:
    """The names, where a number alone is one more device of the kind before it."""
    kind = ""
    for name in names:
        if name.isdecimal() and kind:
            yield f"{kind}:{name}"
        else:
            kind = name.partition(":")[0]
            yield name
