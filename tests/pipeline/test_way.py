"""Which files a picture goes through on its way from a call to the compiled graphs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
from max.driver import Buffer

from benchmarks.structure import MAX_ON_THE_WAY, WAY
from max_zimage.compile.compiler import CompiledGraph
from tests.paths import ROOT
from tests.references.diffusers_runs import Pair

GRAPHS = ["text_encoder", "conditioning", "pack", "modulation", "denoise", "denoise", "decode"]


def test_a_picture_goes_through_few_files(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on the stack whenever one of its graphs runs."""
    run, files, graphs = CompiledGraph.__call__, list[str](), list[str]()

    def watched(graph: CompiledGraph, *inputs: Any) -> Sequence[Buffer]:
        graphs.append(graph.name)
        files.extend(name for name in reversed(_files_of_the_stack()) if name not in files)
        return run(graph, *inputs)

    monkeypatch.setattr(CompiledGraph, "__call__", watched)
    embedded.ours("a red star", num_inference_steps=2, seed=3)
    assert graphs == GRAPHS
    assert tuple(files) == WAY
    assert len(WAY) <= MAX_ON_THE_WAY


def _files_of_the_stack() -> list[str]:
    """Of the package, innermost first, behind the caller."""
    package, found, frame = f"{ROOT / 'max_zimage'}/", [], sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(package) and name.removeprefix(package) not in found:
            found.append(name.removeprefix(package))
        frame = frame.f_back  # type: ignore[assignment]
    return found
