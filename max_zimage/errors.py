"""Errors that callers catch, and that packages which do not import each other raise alike.

What is wrong with a request is said to people who call its fields by other names: `num_inference_steps` in Python,
`--steps` on the command line, `steps` over HTTP. So a message is kept with places for names, and whoever reports it
fills them in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

PHRASES: Mapping[str, str] = MappingProxyType(
    {
        "resize": "set resize=True",
        "asks": "the request asks",
        "own size": "ask for the image's size",
        "cpu": 'use device="cpu"',
    }
)
"""Key -> words of a message that are no names and that others say otherwise; here as Python says them."""


@dataclass(frozen=True)
class Wording:
    """How one front end speaks of a request.

    Attributes:
        names: Field -> what it is called there; a field that is not named keeps its name.
        phrases: Key of `PHRASES` -> what stands there instead.
    """

    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    phrases: Mapping[str, str] = dataclasses.field(default_factory=dict)


PYTHON = Wording()


@dataclass(frozen=True)
class Item:
    """A part of a field that a message is about.

    Attributes:
        field: The field.
        part: What follows its name in messages, such as "[1]" or " 0".
    """

    field: str
    part: str = ""

    def __str__(self) -> str:
        return self.field + self.part


class _Names(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return name


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request, or that it had better know.

    Attributes:
        field: The field that is to blame, by its name in Python; None if none is.
        message: A template of `str.format`: {field} is the field's name with its part, {name[x]} the name of a field x,
            {say[x]} a phrase of `PHRASES`, and everything else one of the values.
        values: What was given, what is allowed and so on. They are put in as they are: nothing in them is a place.
        part: Which part of the field, see `Item`.
    """

    field: str | None
    message: str
    values: Mapping[str, object] = dataclasses.field(default_factory=dict)
    part: str = ""

    @classmethod
    def of(cls, subject: str | Item | None, message: str, **values: object) -> Problem:
        """Make one.

        Args:
            subject: The field, or the part of one.
            message: See the attribute.
            **values: See the attribute.
        """
        item = Item(subject) if isinstance(subject, str) else subject
        return cls(None, message, values) if item is None else cls(item.field, message, values, item.part)

    def said(self, wording: Wording = PYTHON) -> str:
        """The message in a front end's words."""
        names = _Names(wording.names)
        own = "" if self.field is None else names[self.field] + self.part
        return self.message.format(field=own, name=names, say={**PHRASES, **wording.phrases}, **self.values)


class RequestError(ValueError):
    """A request that cannot be run; the message is meant for the person who made it.

    Attributes:
        problems: All that is wrong, the first one to be blamed first.
    """

    def __init__(self, *problems: Problem | str) -> None:
        """Take problems; a string is one that blames no field, and is said as it stands."""
        self.problems = tuple(
            Problem(None, "{text}", {"text": each}) if isinstance(each, str) else each for each in problems
        )
        super().__init__(self.said())

    @classmethod
    def of(cls, subject: str | Item | None, message: str, **values: object) -> RequestError:
        """An error of one problem; see `Problem.of`."""
        return cls(Problem.of(subject, message, **values))

    def said(self, wording: Wording = PYTHON) -> str:
        """All problems in a front end's words: one sentence, or a line for each of several."""
        messages = [problem.said(wording) for problem in self.problems]
        if len(messages) == 1:
            return messages[0]
        return "\n- ".join([f"the request has {len(messages)} problems:", *messages])


class RequestWarning(UserWarning):
    """Something about a request that its author had better know.

    Attributes:
        problem: What it is.
    """

    def __init__(self, problem: Problem | str) -> None:
        """Take a problem; a string is said as it stands, as when a warning comes from another process."""
        self.problem = Problem(None, "{text}", {"text": problem}) if isinstance(problem, str) else problem
        super().__init__(self.problem.said())


class NotFiniteError(RuntimeError):
    """NaN or infinity arose on the way to a picture or a text, or a number so large that its square is infinite.

    Attributes:
        what: What is not finite, in words.
        images: One entry a picture of the call, as `output_type` asked for it; None for each that is not finite. Those
            that shared a batch with it are finished. Nothing where texts were written.
        suspects: What may have caused it, the likeliest first.
    """

    def __init__(self, what: str, images: Sequence[Any], suspects: Sequence[str]) -> None:
        super().__init__(what, images, suspects)
        self.what, self.images, self.suspects = what, list(images), tuple(suspects)

    def __str__(self) -> str:
        """What it is, and what may have caused it."""
        return explained(self.what, self.suspects)

    def blaming(self, *suspects: str) -> NotFiniteError:
        """The same with more suspects, before the others."""
        return NotFiniteError(self.what, self.images, (*suspects, *self.suspects))


def explained(what: str, suspects: Sequence[str]) -> str:
    """One sentence."""
    return f"{what}; what may have caused it: {', or '.join(suspects)}"


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message says which file or tensors, and why."""


class AdapterError(CheckpointError):
    """A LoRA that cannot be used with this model; the message says which tensors or modules, and why."""
