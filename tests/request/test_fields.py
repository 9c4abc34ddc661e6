"""The table of request fields agrees with itself and with those that are made from it."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from max.pipelines.request.provider_options import ImageProviderOptions

from max_zimage.cli.field_flags import add_flag, given_fields
from max_zimage.cli.main import _parser
from max_zimage.request.dype_fields import DYPE_METHODS
from max_zimage.request.fields import ROWS, RequestFields
from max_zimage.request.json_values import is_kind
from max_zimage.request.kinds import Cache, Kind, Number, Switch, Texts, Whole
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.list_kinds import Levels, Margins, NumberOrMany, Pair, Wholes
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.request import GenerationRequest
from max_zimage.request.row import Of
from max_zimage.serving.http.schema import EDIT, GENERATION, ImageRequest, given
from tests.paths import ROOT
from tests.request.test_request import LIMITS, make


def test_no_two_fields_have_a_name_in_common() -> None:
    flags = [name for row in ROWS.values() if row.flag for name in (row.flag.name, *row.flag.others)]
    images = [row.images.name for row in ROWS.values() if row.images]
    responses = [row.responses.name for row in ROWS.values() if row.responses]
    for names in (flags, images, responses):
        assert len(names) == len(set(names))


def test_a_request_holds_what_the_table_says() -> None:
    held = [row.attribute for row in ROWS.values() if row.attribute]
    assert held == [field.name for field in dataclasses.fields(RequestFields)]
    assert held == [field.name for field in dataclasses.fields(GenerationRequest)]


def test_defaults_are_where_the_table_looks_for_them() -> None:
    known = {field.name for kind in (Limits, RequestDefaults) for field in dataclasses.fields(kind)} | {
        "default_tokens"
    }
    assert {row.default.attribute for row in ROWS.values() if isinstance(row.default, Of)} <= known


def test_every_kept_field_is_among_the_parameters_of_a_picture() -> None:
    kept = [name for name, row in ROWS.items() if row.kept and name not in ("strength", "seed")]
    assert [field.name for field in dataclasses.fields(GenerationParameters)][: len(kept)] == kept
    assert {"strength", "seed"} <= {field.name for field in dataclasses.fields(GenerationParameters)}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("bool", [True, False], [None, 1, "true"]),
        ("int", [1], [None, True, 1.5, "1"]),
        ("float | None", [None, 1, 1.5], [False, "1"]),
        ("tuple[float, ...]", [[], [1, 2.5]], [None, 1, [True], ["x"]]),
    ],
)
def test_types_of_kept_values(kind: str, good: list[object], bad: list[object]) -> None:
    assert all(is_kind(value, kind) for value in good)
    assert not any(is_kind(value, kind) for value in bad)


def test_every_flag_is_taken_and_lands_in_its_field() -> None:
    words = ["generate", "x"]
    expected: dict[str, Any] = {"prompt": "x"}
    for name, row in ROWS.items():
        if row.flag is None or row.flag.group is None:
            continue
        value = {bool: True, int: 16, float: 0.5, str: "word"}[row.kind.plain]
        lists: dict[type[Kind], tuple[list[Any], str]] = {
            Wholes: ([3, 5, 6], "3,5-6"),
            Margins: ([1, 2, 0, 3], "1,2,0,3"),
            Levels: ([1, 0.5], "1,0.5"),
        }
        value, text = lists.get(type(row.kind), (value, str(value)))
        expected[name] = [value] * row.kind.values if row.kind.values > 1 or row.flag.repeated else value
        words += [row.flag.name] if row.kind.plain is bool else [row.flag.name, *[text] * row.kind.values]
    assert given_fields(_parser().parse_args(words)) == expected
    assert given_fields(_parser().parse_args(["generate"])) == {}
    with pytest.raises(KeyError, match="prompt_embeds has no flag"):
        add_flag(argparse.ArgumentParser(), "prompt_embeds")


def test_a_flag_may_stand_alone() -> None:
    """Then it stands for the word that the table has for it."""
    assert given_fields(_parser().parse_args(["generate", "--dype"])) == {"dype": "vision_yarn"}
    assert given_fields(_parser().parse_args(["generate", "--dype", "ntk"])) == {"dype": "ntk"}
    assert ROWS["dype"].flag is not None
    assert ROWS["dype"].flag.bare in DYPE_METHODS


def test_bodies_have_the_fields_of_the_table() -> None:
    rows = [row.images for row in ROWS.values() if row.images and row.images.description]
    ours = {name for row in rows for name in (row.name, *row.others)}
    edits = {row.images.name for row in ROWS.values() if row.images and row.images.edits_only}
    assert set(GENERATION.model_fields) == set(ImageRequest.model_fields) | (ours - edits)
    assert set(EDIT.model_fields) - {"mask", "input_fidelity"} == set(ImageRequest.model_fields) | ours | edits
    body = GENERATION.model_validate({"prompt": "x", "steps": 3, "guidance_scale": 0.0})
    assert given(body) == {"num_inference_steps": 3, "guidance_scale": 0.0}


def test_options_of_max_are_its_own() -> None:
    named = {row.responses.name for row in ROWS.values() if row.responses and row.responses.place == "options"}
    assert named <= set(ImageProviderOptions.model_fields)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Number(), "1.5", 1.5),
        (Number(), "much", "much"),
        (Whole(high=9), "3", 3),
        (Whole(high=9), "3.5", "3.5"),
        (Wholes(limit="num_layers"), "1,3-5", [1, 3, 4, 5]),
        (Wholes(limit="num_layers"), "x", "x"),
        (Margins(limits=("max_width", "max_height")), "0,16,0,8", [0, 16, 0, 8]),
        (Margins(limits=("max_width", "max_height")), "0,x", "0,x"),
        (Pair(), "0.2, 0.5", [0.2, 0.5]),
        (Pair(), "0 y", "0 y"),
        (NumberOrMany(), "2.5", 2.5),
        (NumberOrMany(), "2.5,1", [2.5, 1.0]),
        (NumberOrMany(), "much", "much"),
        (Levels(), "1,0.7,0.2", [1.0, 0.7, 0.2]),
        (Levels(), "1", [1.0]),
        (Levels(), "1 0.7", "1 0.7"),
        (Switch(), "true", True),
        (Switch(), "false", False),
        (Switch(), "yes", "yes"),
        (Cache(), "off", "off"),
    ],
)
def test_text_stands_for_what_json_would_say(kind: Kind, text: str, value: object) -> None:
    assert kind.read(text) == value
    assert type(kind.read(text)) is type(value)


def test_a_field_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a request has no fuzziness; it has prompt, negative_prompt, .*, resize"):
        make(fuzziness="euler")
    with pytest.raises(NotImplementedError, match="Texts is checked together with other fields"):
        Texts().check("prompt", "x", LIMITS)


def test_the_table_needs_no_numpy() -> None:
    program = "import sys, max_zimage.request.fields; print(sorted({'numpy', 'max', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
