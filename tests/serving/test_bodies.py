"""Bodies without a model behind them: what is said of those with thousands of faults, and what the description says."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from max_zimage.request.limits import RequestDefaults
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.a1111_arguments import arguments
from max_zimage.serving.http.a1111_body import TXT2IMG
from max_zimage.serving.http.app import _ROUTES
from max_zimage.serving.http.routes_images import parsed
from max_zimage.serving.http.routes_llm_dit import GENERATE
from max_zimage.serving.http.schema import EDIT

DEFAULTS: Any = RequestDefaults.__new__(RequestDefaults)


def refusal(model: type[BaseModel], body: Any) -> str:
    begin = time.perf_counter()
    with pytest.raises(ApiError) as caught:
        found = parsed(model, json.dumps(body).encode())
        arguments(found, "m", DEFAULTS)  # type: ignore[arg-type]
    assert time.perf_counter() - begin < 1.5
    return str(caught.value)


def test_thousands_of_unknown_fields() -> None:
    said = refusal(EDIT, {f"{'q' * 40}{number}": 1 for number in range(20_000)})
    assert said.count("is no field of this route") == 19  # and the image is wanting
    assert said.endswith("; and 19981 more")
    assert "the nearest is seed" in refusal(EDIT, {"seeed": 1})
    assert len(refusal(EDIT, {"seed" * 100_000: 1})) < 200


@pytest.mark.parametrize(
    "body",
    [
        {"override_settings": {f"s{number}": 1 for number in range(5_000)}},
        {"alwayson_scripts": {f"s{number}": {"args": [1]} for number in range(5_000)}},
        {"prompt": "<lora:a:x>" * 5_000},
    ],
    ids=lambda body: next(iter(body)),
)
def test_thousands_of_faults(body: dict[str, Any]) -> None:
    said = refusal(TXT2IMG, body)
    assert said.endswith("; and 4980 more")
    assert said.count("; ") <= 60


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from ([part["$ref"]] if isinstance(part.get("$ref"), str) else [])
        part = list(part.values())
    for each in part if isinstance(part, list) else ():
        yield from references(each)


def test_the_description_refers_to_nothing_that_is_not_there() -> None:
    app = FastAPI()
    for module in _ROUTES:
        app.include_router(module.router)
    whole = app.openapi()
    for each in references(whole):
        place = whole
        for key in each.removeprefix("#/").split("/"):
            place = place[key]
    assert '"$defs"' not in json.dumps(whole)
    fields = GENERATE.model_fields
    body = whole["paths"]["/api/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == set(fields)
    (dype,) = (each for each in body["properties"]["dype"]["anyOf"] if each["type"] == "object")
    assert "multipass" in dype["properties"]
