"""A job's table: one record a picture, as Parquet."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from max_zimage.batch.extra import arrow, parquet

Record = Mapping[str, Any]

ORDER = ("row", "picture")


def schema() -> Any:
    """The columns.

    `row` is the place of the row in the file and `picture` which of its pictures; `id` is the row's. `parameters` is
    what the picture was drawn with, JSON of `max_zimage.request.metadata.GenerationParameters`. `path` is its file
    below the job's address, `member` its name in that file where it is a shard, `digest` the picture's SHA-256.
    `seconds` is its share of what its batch took, `error` why there is no picture, `note` what else is to be said.
    """
    pa = arrow()
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("picture", pa.int32(), nullable=False),
            pa.field("seed", pa.int64()),
            pa.field("parameters", pa.string()),
            pa.field("path", pa.string()),
            pa.field("member", pa.string()),
            pa.field("digest", pa.string()),
            pa.field("seconds", pa.float64()),
            pa.field("error", pa.string()),
            pa.field("note", pa.string()),
        ]
    )


def record(id: str, row: int, picture: int = 0, **values: Any) -> dict[str, Any]:
    """A record; what is not given is null."""
    names: list[str] = schema().names
    if unknown := values.keys() - set(names):
        raise TypeError(f"a record has no {', '.join(sorted(unknown))}")
    return {**dict.fromkeys(names), "id": id, "row": row, "picture": picture, **values}


def table(records: Iterable[Record]) -> Any:
    """Records as a table, in the order of the file."""
    ordered = sorted(records, key=lambda each: tuple(each[name] for name in ORDER))
    return arrow().Table.from_pylist(ordered, schema=schema())


def to_parquet(records: Iterable[Record]) -> bytes:
    """Records as a Parquet file."""
    content = io.BytesIO()
    parquet().write_table(table(records), content)
    return content.getvalue()


def of_parquet(content: bytes | BinaryIO, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Records of a Parquet file.

    Args:
        content: Of the file, or the file itself, of which no more is read than that.
        columns: Those that are wanted; None for all.

    Raises:
        ValueError: If it is none.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    found: list[dict[str, Any]] = parquet().read_table(file, columns=columns).to_pylist()
    return found
