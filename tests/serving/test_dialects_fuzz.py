"""Requests of every API that nobody wrote by hand; the long form is `make fuzz ARGS=requests`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzzers.requests import LIMITS, fuzz
from tests.references.servers import Server


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("narrow"), LIMITS) as running:
        yield running


def test_400_requests_of_every_api(narrow: Server) -> None:
    found = fuzz(400, 1, narrow)
    assert found.wrong == []
    assert found.tried == 400
    # It is no test of refusals alone, nor of pictures.
    assert found.right >= 60
    assert found.refused >= 100
    for route in (
        "/v1/images/generations",
        "/v1/images/edits",
        "/api/generate",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
    ):
        for status in (200, 400):
            assert narrow.metric(f'zimage_requests_total{{route="{route}",status="{status}"}}') >= 1
