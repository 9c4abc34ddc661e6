"""What `max-zimage compile` compiles of which checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from max_zimage.cli.model_shapes import what_to_compile
from max_zimage.compile.ahead_of_time import DIFFUSION_GEMMA, FULL_MODEL, check_graphs
from max_zimage.compile.entry import EVERY_COMPONENT
from max_zimage.compile.registry import AHEAD
from tests.diffusion_gemma.test_config import PUBLISHED


def test_a_model_has_the_graphs_of_its_own_parts(tmp_path: Path) -> None:
    text = ("gemma_read", "gemma_denoise")
    specs, components = what_to_compile("tiny-zimage")
    assert specs.diffusion_gemma is None
    assert check_graphs((), components) == tuple(name for name in AHEAD if name not in text)
    with pytest.raises(ValueError, match=r"graphs must be among pack, .*, got 'gemma_denoise'"):
        check_graphs(("gemma_denoise",), components)
    assert what_to_compile(None) == (FULL_MODEL, EVERY_COMPONENT)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    specs, components = what_to_compile(str(tmp_path))
    assert specs.diffusion_gemma == DIFFUSION_GEMMA
    assert check_graphs((), components) == text
    with pytest.raises(ValueError, match="graphs must be among gemma_read, gemma_denoise, got 'pack'"):
        check_graphs(("pack",), components)
