"""One row of the table of request fields: all that is to be known of a field, in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from max_zimage.request.kinds import Kind

Group = Literal["the picture", "enhancing the prompt", "image-to-image", "passes", "guidance", "fine tuning"]


@dataclass(frozen=True)
class Of:
    """A default that the checkpoint has: an attribute of its `RequestDefaults` or of its `Limits`."""

    attribute: str


@dataclass(frozen=True)
class Flag:
    """A flag of the command line.

    Attributes:
        name: Such as "--steps".
        metavar: What stands for its value in the help; "" for a flag without one.
        help: What the help says of it.
        group: Under which heading `max-zimage generate` has it; None where it has no such flag.
        others: Other spellings.
        bare: What the flag stands for without a word behind it; "" where it wants one.
        repeated: Whether it may be given several times, for a list.
    """

    name: str
    metavar: str
    help: str
    group: Group | None
    others: tuple[str, ...] = ()
    bare: str = ""
    repeated: bool = False

    @property
    def destination(self) -> str:
        """The attribute under which argparse leaves its value."""
        return self.name.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class Images:
    """A field of OpenAI's image routes.

    Attributes:
        name: What the routes and their messages call it.
        description: What the schema says of it; "" for a field of OpenAI's own, which the schema declares by itself.
        param: The field that errors blame, where that is another.
        edits_only: Whether only edits take it.
        others: What other servers of this API call it.
    """

    name: str
    description: str = ""
    param: str = ""
    edits_only: bool = False
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Responses:
    """A field of MAX's `/v1/responses`.

    Attributes:
        name: What the route and its messages call it.
        place: Where in the body it stands: with the options of pictures, at the top, or as text in the metadata, for
            MAX's schema refuses what it does not know; "" where it takes more than a look-up to find it.
        param: The field that errors blame, where that is another.
    """

    name: str
    place: Literal["options", "body", "metadata", ""] = "options"
    param: str = ""


@dataclass(frozen=True)
class Kept:
    """A field that a picture remembers.

    Attributes:
        type: Of its JSON value: "str", "int", "float", "bool", "dict" or a tuple such as "tuple[float, ...]"; behind it
            may stand " | None".
        since: The format of the parameters that it came with.
        before: What it is in pictures from before.
    """

    type: str
    since: int = 1
    before: object = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A field of a request.

    Attributes:
        kind: What it may hold, and how that is checked and written.
        argument: Its name in Python, by which errors blame it.
        attribute: Where `GenerationRequest` holds it; "" for what is only looked at while a request is made.
        is_optional: Whether a request may hold None.
        default: What stands where nothing is given: a value as it would be given, or where to find one.
        none_is_default: Whether None is taken for nothing.
        is_checked_alone: Whether `kind` decides; else `GenerationRequest.create` does, with other fields at hand.
        flag: On the command line, or None.
        images: On OpenAI's image routes, or None.
        responses: On MAX's route, or None.
        kept: In the parameters that pictures carry, or None.
        shared: What requests that share a batch must have in common: "value", this one; "levels", the noise levels that
            come of it; "none", nothing of it.
    """

    kind: Kind
    argument: str = ""
    attribute: str = ""
    is_optional: bool = False
    default: object = None
    none_is_default: bool = True
    is_checked_alone: bool = True
    flag: Flag | None = None
    images: Images | None = None
    responses: Responses | None = None
    kept: Kept | None = None
    shared: Literal["value", "levels", "none"] = "none"


def row(kind: Kind, **what: Any) -> Any:
    """Declare an attribute of the table, of a kind and with the other attributes of `Row`."""
    return dataclasses.field(metadata={"row": Row(kind=kind, **what)})


def rows_of(table: type, *others: Row) -> Mapping[str, Row]:
    """The rows of a table by argument, in its order.

    Args:
        table: A dataclass whose fields are made by `row`.
        *others: Rows that no attribute of a request stands for.
    """
    rows: list[Row] = []
    for field in dataclasses.fields(table):
        found: Row = field.metadata["row"]
        is_optional = str(field.type).endswith("| None")
        argument = found.argument or field.name
        rows.append(dataclasses.replace(found, argument=argument, attribute=field.name, is_optional=is_optional))
    return {each.argument: each for each in (*rows, *others)}
