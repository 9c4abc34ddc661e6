"""Files of jobs: what rows come of them, and what is wrong with which."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from max_zimage.batch.columns import check_columns, values_of
from max_zimage.batch.openai_lines import values_of_line
from max_zimage.batch.pictures_in import TRANSPARENCY
from max_zimage.batch.source import RawRow, Source

ROWS = [{"id": "a", "prompt": "a star, red", "seed": 3}, {"id": "b", "prompt": "é", "height": 64}]


def read(path: Path, id_column: str | None = None, size: int = 2) -> list[RawRow]:
    source = Source(str(path), id_column)
    return [row for _, rows in source.windows(source.survey(), size) for row in rows]


def fields(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(row.id, dict(row.fields)) for row in read(path)]


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"id":"a","prompt":"a star, red","seed":3}\n\n{"id":"b","prompt":"é","height":64}\n', "utf-8")
    table = tmp_path / "a.csv"
    table.write_text('id,prompt,seed,height\r\na,"a star, red",3,\r\nb,é,,64\r\n', "utf-8-sig")
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    # A column with gaps as other tools write it: whole numbers become floats, and what is missing NaN.
    columns = {"id": ["a", "b"], "prompt": ["a star, red", "é"], "seed": [3, None], "height": [float("nan"), 64.0]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    expected = [(row["id"], {name: value for name, value in row.items() if name != "id"}) for row in ROWS]
    for path in (lines, packed, table, tmp_path / "a.parquet"):
        assert [(id, values_of(found)) for id, found in fields(path)] == expected, path


def test_a_line_that_cannot_be_read_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"id":"a","prompt":"x"}\nno json\n[1]\n{"id":"b","prompt":"\xff"}\n{"prompt":"y"}\n{"id":"a","prompt":"z"}\n'
        b'{"id":true,"prompt":"z"}\n{"id":"\\ud800","prompt":"z"}\n'
    )
    rows = read(path)
    assert [row.id for row in rows] == ["a", "row 1", "row 2", "row 3", "row 4", "a", "True", "row 7"]
    said = [str(row.problem) for row in rows[1:]]
    beginnings = (
        "the line is no JSON object in UTF-8: ",
        "the line must be a JSON object, got list",
        "the line is no JSON object in UTF-8: ",
        "id: must be a text or a whole number, got None",
        "id: 'a' is the id of an earlier row, too",
        "id: must be a text or a whole number, got True",
        "the line is no JSON object in UTF-8: ",
    )
    for text, begin in zip(said, beginnings, strict=True):
        assert text.startswith(begin)
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt,seed\nx,1\ny,2,3\n\xff,4\n")
    rows = read(path)
    assert [row.id for row in rows] == ["0", "1", "2"]
    assert [row.problem for row in rows] == [
        None,
        "the line has 1 cells more than the first one; quote commas",
        "the line is no UTF-8; save the file as UTF-8",
    ]


def test_a_quote_that_is_astray_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,seed\nx,1\n"a ""red"" star"s,2\ny,3\n"two\nlines" z,4\n"a\nb",5\n')
    rows = read(path)
    assert [row.fields for row in rows if row.problem is None] == [
        {"prompt": "x", "seed": "1"},
        {"prompt": "y", "seed": "3"},
        {"prompt": "a\nb", "seed": "5"},
    ]
    said = [row.problem for row in rows if row.problem is not None]
    assert [each.partition(":")[0] for each in said] == ["line 3", "lines 5 to 6"]
    assert all("put the cell in quotes" in each for each in said)


def test_a_line_that_is_unlike_the_others_costs_itself(tmp_path: Path) -> None:
    """The first one, too, which decides nothing."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt":"none"}\n{"id":"a","prompt":"x"}\n{"id":"b","prompt":"y"}\n')
    rows = read(path)
    assert [row.id for row in rows] == ["row 0", "a", "b"]
    assert [row.problem is None for row in rows] == [False, True, True]
    line = '{"custom_id":"%s","method":"POST","url":"/v1/images/generations","body":{"prompt":"x"}}\n'
    path.write_text('{"prompt":"none"}\n' + line % "a" + line % "b")
    assert Source(str(path)).survey().is_openai
    assert [(row.id, row.problem is None) for row in read(path)] == [("row 0", False), ("a", True), ("b", True)]
    path.write_text('{"prompt":"x"}\n{"prompt":"y"}\n' + line % "a")
    survey = Source(str(path)).survey()
    assert (survey.is_openai, survey.has_ids) == (False, False)
    path.write_text('{"prompt":"x"}\n{"prompt":"y"}\n{"name":"a","prompt":"z"}\n')
    assert [row.problem is None for row in read(path, "name")] == [False, False, True]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"x", r"a job's file ends in \.parquet, \.pq, \.jsonl"),
        ("a.parquet.gz", b"x", "a job's file ends in"),
        ("a.parquet", b"x", "cannot be read as parquet: Parquet file size is 1 bytes"),
        ("a.jsonl", b"\n", "has no rows"),
        ("a.csv", b"prompt,prompt\nx,y\n", "must name the columns, each once, got prompt, prompt"),
        ("a.csv", b'prompt\n"x\n', "cannot be read as csv: unexpected end of data"),
        ("a.jsonl", None, "cannot be read as jsonl: No such file"),
    ],
)
def test_a_file_that_is_none_is_refused(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        Source(str(tmp_path / name)).survey()


def test_ids_of_another_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("name,prompt\nfirst,x\nsecond,y\n")
    assert [row.id for row in read(path, "name")] == ["first", "second"]
    with pytest.raises(ValueError, match="has no column key; it has name, prompt"):
        Source(str(path), "key").survey()


def test_columns_that_are_no_fields_are_refused_with_the_nearest() -> None:
    def said(*names: str, ignored: tuple[str, ...] = ()) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011  (the sentence is what is looked at)
            check_columns("f", names, names, ignored)
        return str(caught.value)

    assert "prompts is no field of a request, the nearest is prompt" in said("prompts")
    assert "steps is no field of a request, the nearest is num_inference_steps" in said("prompt", "steps")
    assert "latents is no column: a job draws from seeds" in said("prompt", "latents")
    assert said("seed") == "f has no column prompt; it has seed"
    assert said("prompt", ignored=("split",)) == "--ignore split: f has no such column; leave it out"
    check_columns("f", ("prompt", "split"), ("prompt", "split"), ("split",))


def test_texts_are_read_as_the_command_line_reads_them() -> None:
    cells = {"num_inference_steps": "3", "guidance_scale": "4,2", "soft_mask": "true", "prompt": "12", "height": 64.0}
    expected = {"num_inference_steps": 3, "guidance_scale": [4.0, 2.0], "soft_mask": True, "prompt": "12", "height": 64}
    assert values_of(cells) == expected
    assert values_of({"height": 64.5, "width": "wide"}) == {"height": 64.5, "width": "wide"}  # which checks refuse


def line(body: Any, url: str = "/v1/images/generations", **more: Any) -> dict[str, Any]:
    return {"method": "POST", "url": url, "body": body, **more}


def test_lines_of_openai_say_what_the_routes_take() -> None:
    body = {
        "prompt": "x",
        "size": "128x64",
        "n": 2,
        "quality": "high",
        "steps": None,
        "guidance_scale": 2,
        "model": "m",
    }
    values, sources = values_of_line(line(body), "m", 5)
    expected = {"prompt": "x", "height": 64, "width": 128, "num_images_per_prompt": 2, "num_inference_steps": 10}
    assert values == {**expected, "guidance_scale": 2}
    assert sources == {}
    edit = {"prompt": "x", "image": ["data:image/png;base64,AA=="], "mask": "data:image/png;base64,AB=="}
    values, sources = values_of_line(line(edit, "/v1/images/edits"), "m", 5)
    assert values == {"prompt": "x"}
    assert sources == {"image": edit["image"][0], TRANSPARENCY: edit["mask"]}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (line({"prompt": "x", "model": "gpt"}), "model: this job draws with m, got 'gpt'"),
        (line({"prompt": "x", "stream": True}), "stream: a job makes PNG files"),
        (line({"prompt": "x", "output_format": "jpeg"}), "output_format: a job makes PNG files"),
        (line({"prompt": "x", "prompts": "y"}), "prompts: is no field of this route, the nearest is prompt"),
        (line({"n": 1}), "prompt: a job draws from prompts"),
        (line(None), "the body"),
        (line({"prompt": "x"}, "/v1/responses"), "url: must be /v1/images/generations or /v1/images/edits"),
        (line({"prompt": "x"}, seed=3), "seed: a line has custom_id, method, url and body"),
        ({"method": "GET", "url": "/v1/images/generations", "body": {}}, "method: must be POST, got 'GET'"),
        (line({"prompt": "x", "image": "http://x/y.png"}, "/v1/images/edits"), "image: must be a data URL"),
        (line({"prompt": "x", "size": "big"}), "size: must be"),
    ],
)
def test_lines_that_ask_for_something_else_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        values_of_line(fields, "m", 5)
