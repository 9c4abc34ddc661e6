"""What weights in eight bits have a GPU launch, and what is refused when graphs are compiled for them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from max_zimage.cli.compile import listing
from max_zimage.cli.main import main
from max_zimage.compile.ahead_of_time import FULL_MODEL, compile_target
from max_zimage.compile.jobs import Report
from max_zimage.compile.registry import GRAPHS


@pytest.mark.targets
def test_a_pass_in_front_of_each_product() -> None:
    """And nothing at loading, where MAX would make whole weights of them, and keep those."""
    ways: dict[str, Any] = {"list_kernels": True, "storages": {"transformer": "int8_rows"}}
    (report,) = compile_target(FULL_MODEL, "cuda:sm_90a", "bfloat16", ["denoise"], **ways)
    _, blocks, found = listing(report).partition("## main_block, 30 times: ")
    assert blocks, report.error
    heading, *lines = found.partition("\n## ")[0].splitlines()
    assert heading == "15 launches"
    assert Counter(line.split()[0] for line in lines) == {
        "widened": 5,
        "matmul": 5,
        "rotary_heads": 1,
        "mha.ragged.no_cache": 1,
        "gated_norms": 2,
        "swiglu": 1,
    }
    assert "at loading" not in listing(report)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--quantize", "transformer=q4", "--graphs", "decode", "denoise"),
            "transformer in q4 is for a CPU, got target cuda:sm_90a for denoise; use int8, or leave them out",
        ),
        (("--quantize", "transformer=int3"), "a storage of int8, q4, got transformer=int3"),
        (("--quantize", "transformer=int8", "--device-count", "2"), "quantize is for one device; leave it or"),
    ],
)
def test_what_cannot_be_compiled(given: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--target", "cuda:sm_90a", *given]) == 2
    assert message in capsys.readouterr().err


def test_what_runs_on_a_cpu_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A configured storage does not stop the command."""
    asked: list[Any] = []

    def compiled(*given: Any, **ways: Any) -> list[Report]:
        asked.append((given[3], ways["storages"]))
        return []

    monkeypatch.setattr("max_zimage.cli.compile.compile_target", compiled)
    monkeypatch.setenv("MAX_ZIMAGE_QUANTIZE", "transformer=int8,text_encoder=q4")
    assert main(["compile", "--target", "cuda:sm_90a", "--keep"]) == 0
    assert "left out: text_encoder" in capsys.readouterr().err
    ((graphs, storages),) = asked
    assert {"denoise", "decode"} < {*graphs}
    assert not [graph for graph in graphs if GRAPHS[graph].component == "text_encoder"]
    assert storages == {"transformer": "int8_rows"}
