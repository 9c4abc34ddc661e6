"""The command profile with tests in place of parts: names, figures, configurations, what there is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from max_zimage import ZImagePipeline
from max_zimage.cli import profile_suite
from max_zimage.cli.sweep_configurations import CONFIGURATIONS, configurations_of
from max_zimage.profiling.suite import GROUPS, named_tests
from tests.profiling.test_profile import Profiled, loaded, run

__all__ = ["loaded", "run"]
QUICK = ("--steps", "2", "--height", "64", "--width", "64", "--repeat", "2", "--warmup", "0")


def test_names() -> None:
    every = tuple(name for names in GROUPS.values() for name in names)
    assert named_tests("encode,generate") == every
    assert named_tests("generate, encode_short") == ("encode_short", "full_generation")
    with pytest.raises(ValueError, match=r"'encod_short' is no test; did you mean encode_short\? There are encode"):
        named_tests("encod_short")
    with pytest.raises(ValueError, match=r"generate_text is no test here: the text encoder's .*cuda_sync is no"):
        named_tests("generate_text,cuda_sync")


def test_configurations() -> None:
    """On a CPU alone a text encoder has one place, and streaming its own memory's blocks spares nothing."""
    places = ("resident", "sequential", "streamed", "cpu_encoder", "gpu_encoder")
    assert configurations_of(["all"], on_accelerator=True) == tuple(CONFIGURATIONS)
    on_host = configurations_of(["all"], on_accelerator=False)
    assert on_host == tuple(name for name in CONFIGURATIONS if name not in places or name == "sequential")
    assert configurations_of(["devices"], on_accelerator=True) == ("baseline", *places)
    assert configurations_of(["devices", "q4"], on_accelerator=False) == ("baseline", "q4", "sequential")
    assert configurations_of(["q4, int8"], on_accelerator=False) == ("baseline", "int8", "q4")
    assert configurations_of(["cuda_encoder,cpu_encoder"], on_accelerator=True) == ("baseline", *places[3:])
    assert configurations_of(["streamed"], on_accelerator=False) == ("baseline", "streamed")
    fixed = {"--placement": "--cpu-offload"}
    assert configurations_of(["all"], on_accelerator=False, fixed=fixed) == on_host[:-1]
    for asked, message in (
        ("fp8,int8", "--sweep: 'fp8': there are all, devices, baseline"),
        ("cuda_encoder", "--sweep: gpu_encoder: all components run on the CPU here; leave it out"),
        ("int8,sequential", "--cpu-offload: a sweep sets it in sequential; leave one of them out"),
        ("devices", "--cpu-offload: a sweep sets it in sequential"),
    ):
        with pytest.raises(ValueError, match=message):
            configurations_of([asked], on_accelerator=False, fixed=fixed)


def test_tests(run: Profiled, loaded: ZImagePipeline) -> None:
    code, out, err = run("--tests", "encode,generate", *QUICK, "--json", "-o", "found.json")
    assert code == 0, err
    facts = json.loads(out)
    assert json.loads(Path("found.json").read_text()) == facts
    found = {each["test"]: each for each in facts["tests"]}
    assert list(found) == list(named_tests("encode,generate"))
    for each in found.values():
        assert each["success"]
        assert each["duration_ms"] == pytest.approx(median(each["runs_ms"]))
        assert len(each["runs_ms"]) == 2
        assert 0 < each["memory_before"] <= each["memory_peak"] <= facts["memory_peak"]
    short = loaded.encode("a red star").tokens
    assert found["encode_short"]["token_count"] == short
    assert found["encode_short"]["tokens_per_sec"] == pytest.approx(1e3 * short / found["encode_short"]["duration_ms"])
    assert found["repeated_encode"]["token_count"] == 5 * found["encode_medium"]["token_count"]
    assert found["encode_with_template"]["token_count"] > found["encode_medium"]["token_count"]
    code, out, err = run("--tests", "encode_short", *QUICK)
    assert code == 0, err
    assert "encode_short" in out
    assert "encode_medium" not in out


def test_a_test_that_fails_says_so(run: Profiled, loaded: ZImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: object, **__: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(ZImagePipeline, "encode", encode)
    code, out, err = run("--tests", "encode_short,generate", *QUICK, "--json")
    assert code == 1
    assert "max-zimage: error: tests: encode_short: RuntimeError: no luck" in err
    first, second = json.loads(out)["tests"]
    assert (first["success"], first["duration_ms"], second["success"]) == (False, None, True)


def test_a_sweep_compares(run: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every configuration is a process of its own with its flags; what fails is a row that says why."""
    asked: list[list[str]] = []

    class Done:
        def __init__(self, command: list[str], **_: object) -> None:
            asked.append(command)
            ms = 50.0 if "--quantize" in command else 100.0
            tests = [{"test": name, "duration_ms": ms, "error": None} for name in ("encode_medium", "full_generation")]
            facts = {"tests": tests, "load_seconds": 1.0, "memory_peak": 2**20}
            self.stdout = "" if "bfloat16" in command else json.dumps(facts)
            self.stderr = "max-zimage: error: it does not fit\n"

    monkeypatch.setattr("subprocess.run", Done)
    code, out, err = run("--sweep", "int8,bfloat16", *QUICK, "--prompt", "-5 stars", "--json")
    assert code == 1
    assert "error: bfloat16: it does not fit" in err
    rows = {row["configuration"]: row for row in json.loads(out)["sweep"]}
    assert {name: row["speedup"] for name, row in rows.items()} == {"baseline": 1.0, "bfloat16": None, "int8": 2.0}
    assert {name: row["total_ms"] for name, row in rows.items()} == {"baseline": 200, "bfloat16": None, "int8": 100}
    assert [command[-2:] for command in asked[1:]] == [list(CONFIGURATIONS[name]) for name in ("bfloat16", "int8")]
    assert all({"--prompt=-5 stars", "--steps=2", "--height=64", "--json"} <= set(command) for command in asked)
    code, out, err = run("--sweep", "int8", *QUICK)
    assert (code, "2.00" in out, "speedup" in out) == (0, True, True)
    asked.clear()
    code, out, err = run("--sweep-devices", "--sweep", "int8", *QUICK, "--device", "cpu", "--json")
    assert [row["configuration"] for row in json.loads(out)["sweep"]] == ["baseline", "int8", "sequential"]
    assert asked[-1][-2:] == ["--placement", "sequential"]


def test_what_there_is(run: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_ZIMAGE_API_KEY", "secret")
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", "somewhere")
    code, out, err = run("--show-info", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["platform"]["cores"] == os.cpu_count()
    assert (
        facts["environment"] | {"MAX_ZIMAGE_API_KEY": "(set)", "MAX_ZIMAGE_CACHE": "somewhere"} == facts["environment"]
    )
    assert "secret" not in out
    assert facts["devices"][0]["name"] == "cpu"
    assert facts["configuration"]["dtype"] in ("float32", "bfloat16")
    used = facts["backends"]["attention"]["used"]
    code, out, err = run("--show-info", "--attention-backend", used)
    assert code == 0, err
    assert f"attention: {used}: " in out


def test_what_is_in_force(run: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the commands that draw take it, from wherever it is said."""
    Path("config.toml").write_text(
        '[pipeline]\nplacement = "sequential"\n[generation]\nstep_cache = "first_block"\nheight = 64\n'
        '[small.pipeline]\nmax_memory = "8GiB"\n'
    )
    monkeypatch.setenv("MAX_ZIMAGE_PYTORCH_EMBEDDING_CACHE", "2MiB")
    flags = ("--config", "config.toml", "--profile", "small", "--quantization", "8bit", "--steps", "8")
    code, out, err = run("--show-info", "--json", *flags)
    assert code == 0, err
    facts = json.loads(out)
    found = facts["configuration"]
    assert (found["file"], found["profile"], found["model"]) == ("config.toml", "small", "tiny-zimage")
    assert (found["placement"], found["max_memory"], found["embedding_cache"]) == ("sequential", 2**33, 2**21)
    assert found["components"] == dict.fromkeys(("text_encoder", "transformer", "vae"), "cpu")
    assert found["step_cache"].startswith("first_block")
    assert found["quantize"] == "text_encoder=int8"
    said = {f"[{each['section']}] {each['key']}": (each["value"], each["origin"]) for each in facts["settings"]}
    assert said["[pipeline] placement"] == ("sequential", "config.toml line 2: [pipeline] placement")
    assert said["[pipeline] max_memory"] == ("8GiB", "config.toml line 7: [pipeline] max_memory")
    assert said["[pytorch] embedding_cache"] == (2**21, "MAX_ZIMAGE_PYTORCH_EMBEDDING_CACHE")
    assert said["[generation] step_cache"] == ("first_block", "config.toml line 4: [generation] step_cache")
    assert said["[generation] num_inference_steps"] == (8, "flag --steps")
    assert said["[] quantize"] == ("text_encoder=int8", "flag --quantize")
    assert said["[encoder] device"] == ("auto", "default")
    assert "[generation] width" not in said  # which nobody says
    code, out, err = run("--show-info", *flags, "--placement", "resident")
    assert code == 0, err
    assert "  [pipeline] placement: resident (flag --placement)\n" in out
    assert "  components: text_encoder cpu, transformer cpu, vae cpu\n" in out
    code, out, err = run("--show-info", "--max-memory", "1MiB")
    assert code == 0, err
    assert "  placement: none\n" in out


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "test": (("--tests", "encod"), "'encod' is no test; did you mean encode?"),
    "configuration": (("--sweep", "fp8"), "--sweep: 'fp8': there are all"),
    "encoder": (("--sweep", "cpu_encoder", "--device", "cpu"), "cpu_encoder: all components run on the CPU here"),
    "placed": (("--sweep-devices", "--placement", "resident"), "--placement: a sweep sets it in"),
    "both": (("--show-info", "--tests", "encode"), "--show-info is alone"),
    "component": (("--tests", "encode", "--component", "vae"), "--component: no meaning with --tests; leave it out"),
    "trace": (("--sweep", "int8", "--trace", "x.json"), "--trace: no meaning with --sweep"),
    "set": (("--sweep", "int8", "--dtype", "float32"), "--dtype: a sweep sets it in each configuration; leave it out"),
    "attention": (("--tests", "encode", "--attention-backend", "fast"), "--attention-backend: invalid choice: 'fast'"),
    "swept": (("--sweep", "int8", "--attention-backend", "max"), "--attention-backend: a sweep sets it in each"),
    "folder": (("--tests", "encode", "-o", "none/x.json"), "folder none does not exist"),
    "alone": (("--component", "vae", "--attention-backend", "max"), "--attention-backend has no meaning with --comp"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input(run: Profiled, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def begins(*_: Any) -> None:
        raise AssertionError("loading began")

    monkeypatch.setattr(ZImagePipeline, "from_prepared", begins)
    monkeypatch.setattr(profile_suite, "_child", begins)
    code, _, err = run(*arguments, *(() if "--component" in arguments else QUICK))
    assert code == 2
    assert message in err


def test_nothing_is_overwritten(run: Profiled) -> None:
    Path("x.json").write_text("precious")
    code, _, err = run("--tests", "encode", "-o", "x.json")
    assert (code, "--output x.json exists and is not overwritten" in err) == (2, True)
    assert Path("x.json").read_text() == "precious"


def test_a_child_has_the_variables_that_python_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not those that a running MAX sets behind its back: PYTHONEXECUTABLE may be another Python's."""
    seen: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **others: object) -> SimpleNamespace:
        seen.append(env)
        return SimpleNamespace(stdout="{}", stderr="")

    monkeypatch.setattr("max_zimage.cli.profile_suite.subprocess.run", run)
    assert profile_suite._child([], []) == {}
    assert seen == [dict(os.environ)]
