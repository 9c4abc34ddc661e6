"""A server that two files of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzzers.requests import LIMITS
from tests.references.servers import Server


@pytest.fixture(scope="package")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose limits keep every picture small, for requests that nobody wrote by hand."""
    with Server(tmp_path_factory.mktemp("narrow"), LIMITS) as running:
        yield running
