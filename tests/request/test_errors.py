"""Errors and warnings about a request: they say the same in another process, which makes them anew from their text."""

from __future__ import annotations

import pickle

import pytest

from max_zimage.errors import Problem, RequestError, RequestWarning


@pytest.mark.parametrize("kind", [RequestError, RequestWarning])
def test_what_is_said_survives_the_way_to_another_process(kind: type[RequestError] | type[RequestWarning]) -> None:
    said = kind(Problem.of("dype", "{field} changes nothing: {given!r}", given=3))
    assert str(kind(*said.args)) == str(said) == "dype changes nothing: 3"
    assert str(pickle.loads(pickle.dumps(said))) == str(said)
