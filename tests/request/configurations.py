"""Configuration files as tests read them, and the requests that come of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from max_zimage.cli.given import command_of
from max_zimage.cli.main import _parser
from max_zimage.cli.server_keys import server_keys
from max_zimage.pipeline.configured import configured_defaults
from max_zimage.request.configuration.configuration import Configuration, read_configuration
from max_zimage.request.request import GenerationRequest
from tests.request.test_request import DEFAULTS, LIMITS

SERVER = server_keys(command_of(_parser(), "serve"))
Read = Callable[..., Configuration]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a file of this text, with no environment unless one is given."""

    def read(text: str, profile: str | None = None, **environment: str) -> Configuration:
        file = tmp_path / "config.toml"
        file.write_text(text)
        return read_configuration(file, profile, server=SERVER, environment=environment)

    return read


def request_of(configuration: Configuration, **given: Any) -> GenerationRequest:
    defaults = replace(DEFAULTS, **configured_defaults(DEFAULTS, LIMITS, configuration))
    return GenerationRequest.create(limits=LIMITS, defaults=defaults, prompt="x", **{"seed": 5} | given)
