"""The file of a job: Parquet, JSON lines or CSV, read as rows, from any file system that fsspec knows.

A file is read three times: to count and to find what is wrong with it as a whole, for its digest, and then window after
window. A line
that cannot be read is a row all the same, with a sentence in place of its fields. Of rows that may name themselves 16
bytes each stay in memory, by which a name that is there twice is found; nothing else grows with the file.

Reference: OpenAI's Batch API, the request input object.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import fsspec
import numpy as np

from max_zimage.batch.extra import parquet

_KINDS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_PACKED = re.compile(r"\.(gz|bz2|xz|zst)$")
_OPENAI = frozenset({"custom_id", "url", "body"})
_CHUNK, _ROWS = 2**20, 1024
_LONGEST_CELL = 2**30  # of a CSV, which may hold a picture as a data URL; Python's own bound is 128 KiB
_SURPLUS = "\0surplus"


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """A row as it stands in the file.

    Attributes:
        number: Its place, from 0.
        id: By which its picture is known.
        fields: Column -> value, without those that are null.
        problem: Why it cannot be drawn; None where nothing is wrong so far.
    """

    number: int
    id: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is known of a file before anything of it is drawn.

    Attributes:
        rows: How many there are.
        digest: SHA-256 of the file, in hexadecimal digits.
        columns: Those that all rows have.
        anywhere: Those that any row has.
        doubles: Rows whose id an earlier one has.
        has_ids: Whether rows name themselves.
        is_openai: Whether it is a batch file of OpenAI's.
    """

    rows: int
    digest: str
    columns: frozenset[str]
    anywhere: frozenset[str]
    doubles: frozenset[int]
    has_ids: bool
    is_openai: bool


class Source:
    """A job's file.

    Args:
        url: A path, or a URL that fsspec knows.
        id_column: Whose values are the ids; None for "id" where there is such a column.

    Raises:
        ValueError: If its ending names no format.
    """

    def __init__(self, url: str, id_column: str | None = None) -> None:
        self.url, self._id_column = url, id_column
        ending = "." + _PACKED.sub("", url).rpartition(".")[2].lower()
        if ending not in _KINDS or (_KINDS[ending] == "parquet" and _PACKED.search(url)):
            raise ValueError(
                f"{url}: a job's file ends in {', '.join(_KINDS)}, lines also in .gz; rename or convert it"
            )
        self._kind = _KINDS[ending]

    def survey(self) -> Survey:
        """Read the whole file once.

        Raises:
            ValueError: If it cannot be read as what its name says, has no rows, or has not the column of ids.
        """
        named, seen, digests = self._named(), Counter[str](), bytearray()
        may_have_ids = self._kind == "jsonl" or self.id_name in named
        rows, sound, of_openai = 0, 0, 0
        for number, (fields, problem) in enumerate(self._records()):
            rows += 1
            if problem is None:
                sound += 1
                of_openai += fields.keys() >= _OPENAI
                seen.update(fields.keys())
            if may_have_ids:
                digests += _digest_of_id(self._id(number, fields))
        if not rows:
            raise ValueError(f"{self.url} has no rows; give a file with one row a picture")
        columns = named or {name for name, times in seen.items() if times == sound}
        is_openai = self._kind == "jsonl" and _are_most(of_openai, sound)
        names_rows = self.id_name in named
        if self._kind == "jsonl":  # a line that is unlike most costs itself
            wanted = self._id_column is not None and self.id_name in seen
            names_rows = wanted or _are_most(seen[self.id_name], sound)
        if self._id_column is not None and not names_rows:
            there = ", ".join(sorted(columns | seen.keys())) or "none"
            raise ValueError(f"{self.url} has no column {self._id_column}; it has {there}")
        return Survey(
            rows=rows,
            digest=self._digest(),
            columns=frozenset(columns),
            anywhere=frozenset(columns | seen.keys()),
            doubles=_doubles(digests) if is_openai or names_rows else frozenset(),
            has_ids=is_openai or names_rows,
            is_openai=is_openai,
        )

    def windows(self, survey: Survey, size: int, done: Collection[int] = ()) -> Iterator[tuple[int, list[RawRow]]]:
        """The rows, so many at a time, with the window's number; windows that are done are left out.

        Raises:
            ValueError: If the file cannot be read.
        """
        records = enumerate(self._records())
        number = 0
        while window := list(islice(records, size)):
            if number not in done:
                yield number, [self._row(survey, place, *record) for place, record in window]
            number += 1

    @property
    def id_name(self) -> str:
        """The column of the ids, where there is one."""
        return self._id_column or "id"

    def _row(self, survey: Survey, number: int, fields: Mapping[str, Any], problem: str | None) -> RawRow:
        name = "custom_id" if survey.is_openai else self.id_name
        found = fields.get(name) if survey.has_ids else number
        if problem is None and (isinstance(found, bool) or not isinstance(found, (str, int)) or found == ""):
            problem = f"{name}: must be a text or a whole number, got {found!r}; every row needs one"
        if problem is None and number in survey.doubles:
            problem = f"{name}: {found!r} is the id of an earlier row, too; give every row its own"
        own = found if problem is None or isinstance(found, (str, int)) else None
        rest = {key: value for key, value in fields.items() if not survey.has_ids or key != name}
        return RawRow(number=number, id=f"row {number}" if own is None else str(own), fields=rest, problem=problem)

    def _id(self, number: int, fields: Mapping[str, Any]) -> object:
        """What is compared with the ids of other rows; no other row's where it names none."""
        found = fields.get("custom_id" if fields.keys() >= _OPENAI else self.id_name)
        return f"\0{number}" if found is None else found

    def _records(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Fields of each row, or none and why."""
        read = {"parquet": self._of_parquet, "jsonl": self._of_lines, "csv": self._of_csv}
        with self._told():
            for fields, problem in read[self._kind]():
                yield {name: value for name, value in fields.items() if not _is_null(value)}, problem

    def _of_parquet(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        with fsspec.open(self.url, "rb") as file:
            for batch in parquet().ParquetFile(file).iter_batches(batch_size=_ROWS):
                for fields in batch.to_pylist():
                    yield fields, None

    def _named(self) -> set[str]:
        """Columns that the file itself names; none of lines, which name each their own."""
        if self._kind == "jsonl":
            return set()
        with self._told(), fsspec.open(self.url, "rb", compression="infer") as file:
            if self._kind == "parquet":
                return set(parquet().ParquetFile(file).schema_arrow.names)
            return set(_csv_of(file).fieldnames or ())

    def _of_lines(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        with fsspec.open(self.url, "rb", compression="infer") as file:
            for line in file:
                if line.strip():
                    yield _of_json(line)

    def _of_csv(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        before = csv.field_size_limit(_LONGEST_CELL)
        try:
            with fsspec.open(self.url, "rb", compression="infer") as file:
                table = _csv_of(file)
                names = table.fieldnames or []
                if len(set(names)) < len(names) or "" in names:
                    raise ValueError(f"its first line must name the columns, each once, got {', '.join(names)}")
                yield from _rows_of(table)
        finally:
            csv.field_size_limit(before)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        with self._told(), fsspec.open(self.url, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever a file system or a format raises, as one kind of error."""
        try:
            yield
        except Exception as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ValueError(f"{self.url} cannot be read as {self._kind}: {said}") from error


def _csv_of(file: Any) -> csv.DictReader[str]:
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    return csv.DictReader(text, restkey=_SURPLUS, strict=True)


def _rows_of(table: csv.DictReader[str]) -> Iterator[tuple[dict[str, Any], str | None]]:
    while True:
        begin = table.reader.line_num + 1
        try:
            yield _of_cells(next(table))
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):  # a quote without an end has taken all that follows
                raise ValueError(f"{error}: a quote in the row that begins on line {begin} has no end") from error
            lines = f"line {begin}" if begin == table.reader.line_num else f"lines {begin} to {table.reader.line_num}"
            yield {}, f"{lines}: {error}; put the cell in quotes, and write a quote in it twice"


def _are_most(some: int, all_: int) -> bool:
    return 2 * some > all_


def _of_json(line: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        fields = json.loads(line)
        json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or halves of letters
        return {}, f"the line is no JSON object in UTF-8: {str(error)[:120]}"
    if not isinstance(fields, dict):
        return {}, f"the line must be a JSON object, got {type(fields).__name__}"
    return fields, None


def _of_cells(fields: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    if _SURPLUS in fields:
        return {}, f"the line has {len(fields[_SURPLUS])} cells more than the first one; quote commas"
    found = {name: value for name, value in fields.items() if value}
    if any("\udc80" <= letter <= "\udcff" for value in found.values() for letter in value):
        return {}, "the line is no UTF-8; save the file as UTF-8"
    return found, None


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _digest_of_id(found: object) -> bytes:
    return hashlib.blake2b(str(found).encode("utf-8", "replace"), digest_size=16).digest()


def _doubles(digests: bytearray) -> frozenset[int]:
    """Places of ids that are there a second time or more; 16 bytes each."""
    table = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((table[:, 1], table[:, 0]))  # stable: of equal ones the earliest comes first
    same = (table[order[1:]] == table[order[:-1]]).all(axis=1)
    return frozenset(order[1:][same].tolist())
