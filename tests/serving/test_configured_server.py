"""A server with a configuration file: its requests get what is configured where they say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.references.diffusers_runs import Pair
from tests.references.loras import STYLE, TEXT, write_adapter
from tests.references.servers import Server
from tests.request.test_repeat import keep, pixels

PROMPT = "a red star on a blue background"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("configured")
    write_adapter(folder / "style.safetensors", STYLE, TEXT)
    (folder / "server.toml").write_text(
        "[generation]\nheight = 64\nwidth = 96\nnum_inference_steps = 2\nshift = 2.0\n"
        "[lora]\npaths = ['style.safetensors']\nscales = [0.5]\n[server]\nmax_steps = 5\n"
    )
    with Server(folder, ["--config", "server.toml"]) as running:
        yield running


def test_requests_get_what_is_configured(server: Server, embedded: Pair, tmp_path: Path) -> None:
    call: dict[str, Any] = {"seed": 3, "output_type": "np", "height": 64, "width": 96, "num_inference_steps": 2}
    loras = [(str(Path(server.folder) / "style.safetensors"), 0.5)]
    keep(tmp_path / "a.png", server.draw(PROMPT, seed=3))
    keep(tmp_path / "b.png", server.draw(PROMPT, seed=3, shift=4.0))
    try:
        assert np.array_equal(
            pixels(tmp_path / "a.png"), np.asarray(embedded.ours(PROMPT, **call, shift=2.0, loras=loras))[0]
        )
        assert np.array_equal(
            pixels(tmp_path / "b.png"), np.asarray(embedded.ours(PROMPT, **call, shift=4.0, loras=loras))[0]
        )
    finally:
        embedded.ours.set_loras()
    assert server.draw(PROMPT, steps=6).status_code == 400
