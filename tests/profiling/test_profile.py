"""The command profile: seconds that add up, a trace that opens, components without a checkpoint, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from max_zimage import ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.profiling import matmul_rate
from max_zimage.profiling.component import MAIN_GRAPHS, Prepared
from tests.references.diffusers_runs import Pair

RATE = 1e11
SMALL = ("--steps", "3", "--guidance", "2", "--height", "64", "--width", "96", "--repeats", "3")
Profiled = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profiled:
    """Run the command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(["profile", *arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def loaded(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> ZImagePipeline:
    """The one pipeline in place of loading; its graphs in place of those with random weights."""
    ours = embedded.ours
    graphs = {"text_encoder": ours.text_encoder.model, "transformer": ours.transformer.model, "vae": ours.vae.model}
    monkeypatch.setattr(ZImagePipeline, "from_prepared", lambda prepared: ours)
    monkeypatch.setattr(Prepared, "load", lambda prepared, session: graphs[prepared.component.name])
    return ours


@pytest.fixture
def known_rate(monkeypatch: pytest.MonkeyPatch, embedded: Pair) -> None:
    """No product is compiled or run."""
    monkeypatch.setattr(matmul_rate, "product_graph", lambda *arguments: embedded.ours.text_encoder.model)
    monkeypatch.setattr(matmul_rate, "measured_rate", lambda *arguments: RATE)


def test_the_parts_of_a_picture_add_up(run: Profiled, loaded: ZImagePipeline) -> None:
    """The one test that measures the machine's matrix product too."""
    code, out, err = run(*SMALL, "--json", "--trace", "trace.json")
    assert code == 0, err
    facts = json.loads(out)
    *parts, total = facts["parts"]
    calls = {part["part"]: part["calls"] for part in parts if part["calls"]}
    assert calls == {"text_encoder": 1, "conditioning": 1, "pack": 1, "modulation": 1, "denoise": 3, "decode": 1}
    assert [part["part"].partition(" ")[0] for part in parts[-3:]] == ["host"] * 3
    assert all(part["seconds"] > 0 for part in parts)
    assert total["calls"] == sum(calls.values())
    for column in ("seconds", "share", "flops", "bytes"):
        assert sum(part[column] or 0 for part in parts) == pytest.approx(total[column], rel=1e-9), column
    assert total["share"] == pytest.approx(1)
    seconds = facts["seconds"]
    assert seconds["fastest"] <= seconds["total"] <= seconds["slowest"]
    assert total["seconds"] == seconds["total"]
    # A rate is work over seconds; the product alone is faster than products with all that stands between them.
    assert 0 < total["matmul_share"] < 1
    step = next(part for part in parts if part["part"] == "denoise")
    assert step["tflop_per_s"] == pytest.approx(step["flops"] / step["seconds"] / 1e12)
    assert step["matmul_share"] == pytest.approx(step["tflop_per_s"] / facts["matmul"]["tflop_per_s"])
    assert step["gb_per_s"] == pytest.approx(step["bytes"] / step["seconds"] / 1e9)
    assert step["average_seconds"] == pytest.approx(step["seconds"] / 3)

    assert [each["step"] for each in facts["steps"]] == [1, 2, 3]
    assert sum(each["graphs"]["denoise"] for each in facts["steps"]) == pytest.approx(step["seconds"])
    assert sum(each["seconds"] for each in facts["steps"]) < total["seconds"]
    assert [alone["graph"] for alone in facts["alone"]] == ["guidance", "scheduler_step"]
    assert all(0 < alone["seconds"] < step["average_seconds"] for alone in facts["alone"])
    assert facts["mode"] == "synchronized"
    assert (facts["repeats"], facts["sizes"], facts["guidance"]) == (3, "1 x 96x64 pixels", 2.0)
    assert facts["step_cache"] == "off"
    check_trace(json.loads(Path(facts["trace"]).read_text()), set(calls), runs=5)


def check_trace(trace: dict[str, Any], graphs: set[str], runs: int) -> None:
    """One lane a component; events in order, apart from each other in a lane and inside one run."""
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    named = [event for event in trace["traceEvents"] if event["ph"] == "M" and event["name"] == "thread_name"]
    lanes = {event["tid"]: event["args"]["name"] for event in named}
    assert len(named) == len(lanes) == len(set(lanes.values())) == len(graphs) + 2
    assert {event["name"] for event in events if event["name"] in graphs} == graphs
    for graph in graphs:
        assert len({event["tid"] for event in events if event["name"] == graph}) == 1
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)
    by_lane = {name: [event for event in events if lanes[event["tid"]] == name] for name in lanes.values()}
    for lane in by_lane.values():
        for before, after in pairwise(lane):
            assert before["ts"] + before["dur"] <= after["ts"] + 0.002  # microseconds, each rounded to a thousandth
    whole = by_lane["runs"]
    assert [event["name"] for event in whole] == ["first", "warm-up", *["measured"] * (runs - 2)]
    assert [event["name"] for event in by_lane["steps"]] == ["step 1", "step 2", "step 3"] * runs
    for event in events:
        assert sum(inside(event, other) for other in whole) == 1
        if event["name"] == "denoise":
            assert sum(inside(event, step) for step in by_lane["steps"]) == 1
            assert event["args"]["gflop"] > 0


def inside(event: dict[str, Any], other: dict[str, Any]) -> bool:
    within = event["ts"] + event["dur"] <= other["ts"] + other["dur"] + 0.002
    return bool(event["ts"] >= other["ts"] and within)


def test_without_synchronization_the_modes_are_told_apart(
    run: Profiled, loaded: ZImagePipeline, known_rate: None
) -> None:
    code, out, err = run(*SMALL, "--no-sync", "--prompt", "a blue ring")
    assert code == 0, err
    assert "not synchronized: only the end of a run is waited for" in out
    assert "denoising steps" in out
    assert "scheduler (Euler update)" in out
    assert "synchronized: the device is waited for around every compiled call" in run(*SMALL)[1]


def test_a_step_cache_shows_in_the_parts(run: Profiled, loaded: ZImagePipeline, known_rate: None) -> None:
    code, out, err = run(*SMALL, "--steps", "9", "--step-cache", "taylorseer:cache_interval=3,warmup_steps=2", "--json")
    assert code == 0, err
    facts = json.loads(out)
    calls = {part["part"]: part["calls"] for part in facts["parts"] if part["calls"]}
    assert (calls["denoise"], calls["taylor_update"], calls["taylor_step"]) == (4, 4, 5)
    assert facts["step_cache"] == "taylorseer:cache_interval=3,warmup_steps=2,max_order=1"
    cached = {part["part"]: part["seconds"] / part["calls"] for part in facts["parts"] if part["calls"]}
    assert cached["taylor_step"] < cached["denoise"]
    refused = run("--component", "transformer", "--step-cache", "first_block")
    assert refused[0] == 2
    assert "--step-cache has no meaning with --component transformer" in refused[2]


COMPONENTS = {
    "text_encoder": (("--batch", "2", "--tokens", "64"), "2 x 64 tokens"),
    "transformer": (("--batch", "2", "--tokens", "96"), "2 x 96 tokens"),
    "vae": (("--height", "64", "--width", "96"), "1 x 96x64 pixels"),
}


@pytest.mark.parametrize(("name", "flags", "sizes"), [(name, *rest) for name, rest in COMPONENTS.items()])
def test_a_component_of_the_embedded_widths(
    run: Profiled, loaded: ZImagePipeline, known_rate: None, name: str, flags: tuple[str, ...], sizes: str
) -> None:
    code, out, err = run("tiny-zimage", "--component", name, *flags, "--repeats", "2", "--warmup", "0", "--json")
    assert code == 0, err
    facts = json.loads(out)
    call, host, total = facts["parts"]
    assert (call["part"], call["calls"], host["part"], facts["sizes"]) == (MAIN_GRAPHS[name], 1, "host", sizes)
    assert call["seconds"] + host["seconds"] == pytest.approx(total["seconds"])
    assert call["share"] == pytest.approx(call["seconds"] / total["seconds"])
    assert call["matmul_share"] == pytest.approx(call["flops"] / call["seconds"] / RATE)
    nbytes = loaded.sources.nbytes[name]
    if name == "transformer":  # conditioning and modulation are graphs of their own
        assert 0.5 * nbytes < facts["weight_bytes"] < nbytes
    elif name == "text_encoder":
        assert facts["weight_bytes"] == nbytes
    assert facts["steps"] == []
    assert len(facts["alone"]) == (2 if name == "transformer" else 0)


REFUSED = {
    "component": (["--component", "unet"], "argument --component: invalid choice: 'unet'"),
    "quantize": (
        ["--component", "transformer", "--quantize", "transformer=int8"],
        "quantize is for the profile of a picture; leave it out, or leave --component out",
    ),
    "batch": (["--component", "vae", "--batch", "0"], "argument --batch: must be at least 1, got 0"),
    "warmup": (["--warmup", "-1"], "argument --warmup: must be at least 0, got -1"),
    "tokens": (
        ["--component", "transformer", "--tokens", "100"],
        "a multiple of 32 from 64 to 262176, got 100",
    ),
    "few tokens": (["--component", "transformer", "--tokens", "32"], "must be a multiple of 32 from 64 to"),
    "no tokens": (["--component", "text_encoder", "--tokens", "0"], "must be a multiple of 32 from 32 to 40960, got 0"),
    "narrow": (["--component", "transformer", "--tokens", "16704"], "would have 32x521 tokens; at most 512x512"),
    "layers": (["--component", "transformer", "--layers", "31"], "--layers must be from 1 to 30"),
    "vae layers": (["--component", "vae", "--layers", "1"], "the vae has no layers to cut"),
    "vae tokens": (["--component", "vae", "--tokens", "96"], "--tokens has no meaning with --component vae"),
    "component height": (["--component", "transformer", "--height", "64"], "--height has no meaning with --component"),
    "component steps": (["--component", "transformer", "--steps", "2"], "--steps has no meaning with --component"),
    "idle": (["--layers", "1"], "--layers has no meaning without --component"),
    "vae size": (["--component", "vae", "--height", "100"], "height must be a multiple of 16, got 100"),
    "size": (["--height", "100"], "height must be a multiple of 16, got 100"),
    "steps": (["--steps", "0"], "--steps must be from 1 to 1000, got 0"),
    "model": (["nothing"], "no model at nothing"),
    "component's model": (["nothing", "--component", "vae"], "no model at nothing"),
    "trace": (["--trace", "nowhere/out.json"], "name a file in a folder that exists"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_before_anything_is_loaded(
    run: Profiled, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("loading began")

    monkeypatch.setattr(ZImagePipeline, "from_prepared", load)
    monkeypatch.setattr(Prepared, "load", load)
    monkeypatch.setattr("max_zimage.profiling.component.available_memory", lambda: 2**60)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("max-zimage: error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_what_does_not_fit_names_what_would(run: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("max_zimage.profiling.component.available_memory", lambda: 8 * 2**30)
    code, _, err = run("--component", "transformer", "--dtype", "bfloat16")
    assert code == 2
    # 32 blocks of 4 · 3840² + 3 · 3840 · 10240 numbers, two bytes each
    assert "the transformer over 1 x 4128 tokens in bfloat16 needs 10.5 GiB of weights and about " in err
    assert "8.0 GiB are available on cpu; use --layers N to cut its depth" in err
    assert "--height and --width" in run("--component", "vae", "--batch", "64")[2]
    monkeypatch.setattr("max_zimage.pipeline.placing.available_memory", lambda: 2**20)
    assert "the model does not fit (placement auto): cpu has 1 MiB for them" in run()[2]
