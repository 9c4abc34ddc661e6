"""A window of rows that is drawn, written as it is to stay: its records, and its pictures as one shard.

    files        pictures/ab/ab12....png, one file each, named by SHA-256 of its bytes
    parquet      inside the table, in a column `image` of {"bytes", "path"}, which `datasets` takes for pictures
    webdataset   pictures/00003.tar, with two members a picture: KEY.png, and KEY.json with its record

Until then pictures wait with the window's work: one that no record names, as of a batch that was taken apart when its
pictures were there, goes with it. A shard holds the same bytes whenever it is written. The records come last: where
they are, the rest is.

Reference: WebDataset's format; datasets/features/image.py.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

from max_zimage.batch.drawing import staged_path
from max_zimage.batch.extra import arrow, parquet
from max_zimage.batch.output import PICTURES, Output
from max_zimage.batch.record_book import RecordBook, results_path, work_folder
from max_zimage.batch.records import ORDER, schema, table, to_parquet
from max_zimage.batch.work import Window

_GROUP = 64  # pictures that are in memory together
_IN_TAR = ("id", "seed", "parameters", "digest", "error", "note")


def finish(book: RecordBook, window: Window, form: str) -> list[dict[str, Any]]:
    """Write what a window comes to, and remove what it was made of.

    Args:
        book: Has its records, and nothing of it is missing.
        window: The window.
        form: "files", "parquet" or "webdataset".

    Returns:
        Its records.

    Raises:
        ValueError: If something cannot be read or written.
    """
    records = sorted(book.records_of(window), key=lambda each: tuple(each[name] for name in ORDER))
    expected = len(window.bad) + len(window.kept) + sum(len(unit.items) for unit in window.units)
    distinct = len({tuple(each[name] for name in ORDER) for each in records})
    if len(records) != expected or distinct != expected:
        raise ValueError(
            f"{book.output.url}: window {window.number} has {len(records)} records of {distinct} distinct pictures, "
            f"{expected} are wanted; remove {work_folder(window.number)}, and it is drawn again"
        )
    path = results_path(window.number)
    if form == "parquet":
        with book.output.writing(path) as file:
            _write_table(file, book.output, window.number, records)
    else:
        if form == "webdataset":
            shard = f"{PICTURES}/{window.number:05d}.tar"
            with book.output.writing(shard) as file:
                _write_tar(file, book.output, window.number, records)
            for each in records:
                each |= {"path": shard, "member": f"{_key(each)}.png"} if each["digest"] else {}
        else:
            _move(book.output, window.number, records)
        book.output.put(path, to_parquet(records))
    book.output.remove(work_folder(window.number))
    return records


def reopen(book: RecordBook, window: int, form: str) -> bool:
    """Have what failed of a window that is done be tried again; its pictures are kept.

    Args:
        book: Has its records.
        window: Which.
        form: As of `finish`.

    Returns:
        Whether anything had failed.

    Raises:
        ValueError: If something cannot be read or written.
    """
    output, records = book.output, book.finished(window)
    if all(each["error"] is None for each in records):
        return False
    output.remove(work_folder(window))  # records of what failed, if it was left
    if form == "parquet":
        with output.reading(results_path(window)) as file:
            for group in parquet().ParquetFile(file).iter_batches(_GROUP, columns=["digest", "image"]):
                for each in group.to_pylist():
                    if each["digest"]:
                        output.put(staged_path(window, each["digest"]), each["image"]["bytes"])
    elif form == "webdataset":
        _unpack(output, window, [each for each in records if each["digest"]])
    book.keep(window, records)
    output.remove(results_path(window))
    return True


def _unpack(output: Output, window: int, drawn: Sequence[dict[str, Any]]) -> None:
    if drawn:
        with output.reading(drawn[0]["path"]) as file, tarfile.open(fileobj=file) as tar:
            for each in drawn:
                member = tar.extractfile(each["member"])
                output.put(staged_path(window, each["digest"]), member.read() if member else b"")


def _move(output: Output, window: int, records: Sequence[dict[str, Any]]) -> None:
    """Pictures to where they stay; an earlier process may have moved some."""
    for each in records:
        if (digest := each["digest"]) is None:
            continue
        each["path"] = f"{PICTURES}/{digest[:2]}/{digest}.png"
        # Not there is one of two equal pictures, too.
        if not output.move(staged_path(window, digest), each["path"]) and not output.has(each["path"]):
            raise _gone(output, each)


def _write_tar(file: BinaryIO, output: Output, window: int, records: Sequence[dict[str, Any]]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for each in records:
            if each["digest"] is None:
                continue
            facts = {name: each[name] for name in _IN_TAR if each[name] is not None}
            facts |= {"parameters": json.loads(facts["parameters"])} if "parameters" in facts else {}
            _add(tar, f"{_key(each)}.png", _staged(output, window, each))
            _add(tar, f"{_key(each)}.json", json.dumps(facts, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without times and owners, which would differ from one writing to the next
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _write_table(file: BinaryIO, output: Output, window: int, records: Sequence[dict[str, Any]]) -> None:
    pa = arrow()
    image = pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))
    own = schema()
    with parquet().ParquetWriter(file, own.append(image)) as writer:
        for group in _groups(records):
            images = []
            for each in group:
                content = _staged(output, window, each) if each["digest"] else None
                name = f"{_key(each)}.png"
                images.append(None if content is None else {"bytes": content, "path": name})
                each |= {"path": None} if content is None else {"path": results_path(window), "member": name}
            writer.write_table(table(group).append_column(image, pa.array(images, image.type)))


def _groups(records: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    left = iter(records)
    while group := list(islice(left, _GROUP)):
        yield group


def _staged(output: Output, window: int, each: dict[str, Any]) -> bytes:
    content = output.get(staged_path(window, each["digest"]))
    if content is None:
        raise _gone(output, each)
    return content


def _gone(output: Output, each: dict[str, Any]) -> ValueError:
    return ValueError(f"{output.url}: the picture of {each['id']} is gone; give another --output and draw anew")


def _key(each: dict[str, Any]) -> str:
    """What a shard calls a picture: ids may hold what names of files may not."""
    return f"{each['row']:08d}-{each['picture']:03d}"
