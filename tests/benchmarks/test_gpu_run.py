"""The run on a GPU that is there for a while: rows at once, nothing twice, overruns cut, surprises flagged."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.gpu_run import __main__ as command
from benchmarks.gpu_run import checkpoint, results, steps
from benchmarks.gpu_run.expected import FIGURES, Figure, judged
from benchmarks.gpu_run.results import COLUMNS, Results, Row
from benchmarks.gpu_run.watch import Watch
from benchmarks.measure import ROOT, Timing

STEPS = "tests.references.run_steps"


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


class Run:
    """A run of the steps in `tests.references.run_steps`."""

    def __init__(self, folder: Path, budget: float = 100.0) -> None:
        self.work, self.file = folder, folder / "gpu.csv"
        self.watch = Watch(
            Results(self.file, small=False), work=folder, deadline=time.time() + budget, small=False, modules=STEPS
        )

    def do(self, *parts: str) -> bool:
        (self.work / "parts").write_text(" ".join(parts))
        return self.watch.run(["machine"])

    @property
    def called(self) -> list[str]:
        return [line.split()[0] for line in (self.work / "called").read_text().splitlines()]

    @property
    def states(self) -> dict[str, tuple[str, str]]:
        return {line["part"]: (line["state"], line["note"]) for line in lines(self.file)}


@pytest.fixture(autouse=True)
def _paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child imports what the tests do."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_part_that_fails_costs_its_own_rows_and_only_it_is_done_again(tmp_path: Path) -> None:
    assert not Run(tmp_path).do("first", "broken", "last")
    assert Run(tmp_path).states == {
        "first": ("ok", ""),
        "broken": ("failed", "RuntimeError: no kernel"),
        "last": ("ok", ""),
    }
    assert "RuntimeError: no kernel\nand more" in (tmp_path / "machine.log").read_text()
    (tmp_path / "mended").touch()
    again = Run(tmp_path)
    assert again.do("first", "broken", "last")
    assert again.called == ["first", "broken", "last", "broken"]
    assert again.do("first", "broken", "last")  # a step whose parts are all there is not even begun
    assert again.called == ["first", "broken", "last", "broken"]
    found = {line["part"]: line for line in lines(again.file)}
    assert found.pop("whole")["variant"] == "3 parts"
    assert {name: line["state"] for name, line in found.items()} == dict.fromkeys(found, "ok")
    assert [found["broken"][name] for name in ("n", "median_s", "gflop_per_s")] == ["2", "0.5", "4"]


def test_an_overrun_is_ended_with_all_it_started_and_the_rest_is_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.do("first", "endless", "last")
    assert run.called == ["first", "endless", "last"]
    assert run.states["endless"] == ("cut", "cut after 3 s")
    assert run.states["first"][0] == run.states["last"][0] == "ok"
    assert list(tmp_path.glob(".gpu.csv.*")) == []  # what it was writing then
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_the_end_of_the_budget_ends_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.STEPS, "machine", steps.Step(what="", seconds=0.0, process="graphs"))
    begin = time.time()
    run = Run(tmp_path, budget=30.0)
    assert not run.do("first", "long", "endless", "last")
    assert time.time() - begin < 40
    assert run.states["first"][0] == "ok"
    assert run.states["long"][0] == "not begun"
    assert run.states["long"][1].startswith("it takes 1000000 s, ")


def test_a_step_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    run = Run(tmp_path, budget=5.0)
    assert not run.do("first")
    assert not (tmp_path / "called").exists()
    assert run.states == {"all": ("not begun", "it takes 15 s, 5 s are left")}


@pytest.mark.parametrize(("part", "note"), [("crashing", "its process ended with status -6"), ("deaf", "RuntimeError")])
def test_after_a_crash_another_process_does_the_rest(tmp_path: Path, part: str, note: str) -> None:
    run = Run(tmp_path)
    assert not run.do("first", part, "last")
    assert run.called == ["first", part, "last"]
    processes = {line.split()[1] for line in (tmp_path / "called").read_text().splitlines()}
    assert len(processes) == 2
    state, said = run.states[part]
    assert state == "failed"
    assert said.startswith(note)
    assert run.states["last"][0] == "ok"


def test_a_wrong_result_has_failed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.do("wrong")
    (line,) = lines(run.file)
    assert (line["state"], line["expected"], line["verdict"]) == (
        "failed",
        "relative_l2 <= 0.01",
        "MISSED: 50.00 of it",
    )


def test_rows_of_other_places_stay_and_are_not_taken_for_these(tmp_path: Path) -> None:
    file = tmp_path / "gpu.csv"
    here = Results(file, small=False)
    here.add("ops", "a", [Row(case="a", variant="ours", value=1.0)])
    other = Results(file, small=False)
    other.conditions["commit"] = "other"
    assert here.done("ops", "a")
    assert not other.done("ops", "a")
    other.add("ops", "a", [Row(case="a", variant="ours", value=2.0)])
    other.add("ops", "a", [Row(case="a", variant="ours", value=3.0)])
    assert [line["value"] for line in lines(file)] == ["1", "3"]
    assert not Results(file, small=True).done("ops", "a")


def test_every_row_has_its_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\ncase $1 in *clocks.sm*) echo '1980, 3201, 690.5, 700.00, 61, 0x0000000000000004';;"
        " *) echo 'NVIDIA H200, 580.1';; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    made = Results(tmp_path / "gpu.csv", small=False, commit="abc")
    made.conditions["commit"] = "abc"
    timing = Timing.of([3.19e-3, 3.2e-3, 3.6e-3])
    made.add(
        "block",
        "variants",
        [Row(case="block, 4160 tokens", variant="ragged attention", dtype="bfloat16", timing=timing)],
    )
    (line,) = lines(made.path)
    assert tuple(line) == COLUMNS
    wanted = {"gpu": "NVIDIA H200", "driver": "580.1", "sm_mhz": "1980", "power_limit_w": "700.00", "commit": "abc"}
    wanted |= {"expected": "median_s <= 0.0032", "verdict": "met", "throttled": "0x0000000000000004", "celsius": "61"}
    assert {name: line[name] for name in wanted} == wanted
    assert line["max"]
    assert line["time"]
    assert line["cpu"]


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(2.7e-3, "met"), (2.9e-3, "5% off"), (3.2e-3, "MISSED: 1.16 of it"), (float("nan"), "MISSED: not a number")],
)
def test_what_misses_by_more_than_a_tenth_is_flagged(seconds: float, verdict: str) -> None:
    case, figures = "block, 4160 tokens", {"median_s": seconds}
    assert judged(case, "own ops", figures, "NVIDIA H200", small=False) == ("median_s <= 0.00275", verdict)
    assert judged(case, "own ops", figures, "NVIDIA H200", small=True) == ("", "")
    assert judged(case, "own ops", figures, "NVIDIA A100", small=False) == ("", "")


def test_a_figure_has_both_bounds_and_wants_a_value() -> None:
    between = Figure(case="", variant="", column="median_s", least=2.0, most=3.0)
    assert [between.verdict(value) for value in (1.9, 2.5, 3.5)] == ["5% off", "met", "MISSED: 1.17 of it"]
    assert between.verdict(1.0) == "MISSED: 0.50 of it"
    assert between.verdict(None) == "MISSED: no value"


def test_expected_figures_name_columns_and_cards() -> None:
    columns = set(Row(case="", variant="").figures)
    for each in FIGURES:
        assert each.column in columns, each
        assert each.card.startswith("NVIDIA H"), each
        assert each.least is not None or each.most is not None, each


def test_a_writer_in_the_background_is_waited_for_and_its_failure_told(tmp_path: Path) -> None:
    checkpoint.begin_writing(tmp_path, small=True)
    checkpoint.begin_writing(tmp_path, small=True)  # one is at it
    folder = checkpoint.wait(tmp_path, small=True, seconds=100)
    assert (folder / "model_index.json").is_file()
    while checkpoint._writer(tmp_path, small=True) is not None:  # it has still to say so
        time.sleep(0.1)
    (folder / "model_index.json").unlink()
    (folder / "vae" / "config.json").unlink()
    (folder / "vae" / "config.json").mkdir()  # cannot be written over
    with pytest.raises(RuntimeError, match=r"no checkpoint was written: .*config\.json"):
        checkpoint.wait(tmp_path, small=True, seconds=100)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "unknown step nosuch; there are all, machine, ops"),
        (["ops", "--budget", "0"], "--budget must be more than 0 s, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err


def test_steps_that_follow_each_other_share_a_process() -> None:
    assert steps.groups(["peers", "replay", "block", "pictures"]) == [["block"], ["pictures", "replay"], ["peers"]]
    assert results.COLUMNS[:3] == ("step", "part", "state")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("NVIDIA H200, 580.1", ("NVIDIA H200", "580.1")),
        ("NVIDIA H200, 580.1\\nNVIDIA A100, PCIe, 580.1", ("NVIDIA H200 + NVIDIA A100, PCIe", "580.1")),
        ("", ("", "")),
    ],
)
def test_the_gpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, found: tuple[str, str]) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert measure._gpu_and_driver() == found


def test_without_nvidia_smi_or_where_it_fails_no_gpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure._gpu_and_driver() == ("", "")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho no, devices\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert measure._gpu_and_driver() == ("", "")
