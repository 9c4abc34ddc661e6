"""Requests of every API that nobody wrote by hand; the long form is `make fuzz ARGS=requests`."""

from __future__ import annotations

from tests.fuzzers.requests import fuzz
from tests.references.servers import Server

ROUTES = (
    "/v1/images/generations",
    "/v1/images/edits",
    "/api/generate",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
)


def test_400_requests_of_every_api(narrow: Server) -> None:
    before = answers(narrow)
    found = fuzz(400, 1, narrow)
    assert found.wrong == []
    assert found.tried == 400
    # It is no test of refusals alone, nor of pictures.
    assert found.right >= 60
    assert found.refused >= 100
    assert min(counted - before[each] for each, counted in answers(narrow).items()) >= 1


def answers(server: Server) -> dict[tuple[str, int], float]:
    """How often each route has drawn, and has refused."""
    return {
        (route, status): server.metric(f'zimage_requests_total{{route="{route}",status="{status}"}}')
        for route in ROUTES
        for status in (200, 400)
    }
