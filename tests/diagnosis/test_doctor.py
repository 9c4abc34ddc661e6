"""`max-zimage doctor`: faults that are planted are found, each under its name, with what to do."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from max_zimage import ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.diagnosis import equipment, installation, places
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.host.processor import processor
from max_zimage.pipeline import placing

Told = dict[str, Any]
Run = Callable[..., tuple[int, Told]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with caches and a port of its own: exit code and its JSON."""
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path / "graphs"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]

    def run(*arguments: str) -> tuple[int, Told]:
        words = arguments if "--port" in arguments else (*arguments, "--port", str(number))
        code = main(["doctor", "--json", *words])
        return code, json.loads(capsys.readouterr().out)

    return run


def findings(told: Told, name: str) -> list[Told]:
    return [each for each in told["findings"] if each["name"] == name]


def found(told: Told, name: str) -> Told:
    (one,) = findings(told, name)
    return one


def test_a_sound_machine_has_no_fault(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run()
    assert code == 0, told
    assert told["counts"]["fault"] == 0
    assert {each["state"] for each in told["findings"]} <= {"ok", "warning"}
    assert all(bool(each["remedy"]) == (each["state"] != "ok") for each in told["findings"])
    names = {each["name"] for each in told["findings"]}
    assert names >= {"Python", "C library", "packages", "MAX", "compiled graphs", "MAX's cache", "temporary files"}
    assert names >= {
        "hub cache",
        "hub",
        "port",
        "processor",
        "bfloat16 products",
        "accelerators",
        "memory",
        "checkpoint",
    }
    assert told["versions"]["modular"] == metadata.version("modular")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("0 faults, ")
    assert len([line for line in lines if line.startswith("ok ")]) >= 10


def test_a_machine_without_a_compiler(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise ImportError("Import of Mojo module failed due to compilation error.")

    monkeypatch.setattr(installation, "import_module", fails)
    code, told = run()
    assert code == 1
    assert found(told, "MAX")["remedy"].startswith("install a C compiler called cc (Debian: gcc and libc6-dev)")
    assert "Mojo module failed" in found(told, "MAX")["found"]


def test_caches_that_cannot_be_written_to(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("MODULAR_CACHE_DIR", str(tmp_path / "file" / "max"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    code, told = run()
    assert code == 1
    assert told["verdict"] == "fault"
    graphs = found(told, "compiled graphs")
    assert graphs["state"] == "fault"
    assert "File exists" in graphs["found"]
    assert "set MAX_ZIMAGE_CACHE" in graphs["remedy"]
    baked = tmp_path / "baked"
    baked.mkdir()
    (baked / "graph.mef").write_text("")
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(baked))
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0, total=0, used=0))
        assert places.graph_cache().state == "warning"
    assert found(told, "MAX's cache")["state"] == "warning"
    assert "set MODULAR_CACHE_DIR" in found(told, "MAX's cache")["remedy"]
    assert found(told, "hub cache")["state"] == "warning"
    assert "set HF_HOME" in found(told, "hub cache")["remedy"]


@pytest.mark.parametrize(("free", "state"), [(2**20, "fault"), (2**30, "warning"), (10**12, "ok")])
def test_a_disk_with_little_room(run: Run, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free, total=free, used=0))
    code, told = run()
    assert found(told, "compiled graphs")["state"] == state
    assert code == (state == "fault")
    assert found(told, "hub cache")["state"] == ("ok" if state == "ok" else "warning")
    assert found(told, "temporary files")["state"] == ("fault" if state == "fault" else "ok")


def test_a_temporary_folder_that_is_not_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    told = found(run()[1], "temporary files")
    assert told["state"] == "warning"
    assert f"TMPDIR is {tmp_path / 'none'}, which is no folder" in told["found"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("")
    code, all_told = run()
    assert code == 1
    assert found(all_told, "temporary files")["state"] == "fault"


def test_packages_of_another_version_and_missing_ones(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["modular==1.0.0", "numpy>=1", "no-such-package-here>=2", 'torch>=99; extra == "test"']
    monkeypatch.setattr(installation, "requires", lambda name: wanted)
    code, told = run()
    assert code == 1
    wrong = findings(told, "packages")
    assert [each["state"] for each in wrong] == ["fault", "fault"]
    assert wrong[0]["found"] == f"modular {metadata.version('modular')} is installed, and ==1.0.0 is needed"
    assert wrong[0]["remedy"] == 'pip install "modular==1.0.0"'
    assert wrong[1]["found"] == "no-such-package-here is not installed"


def test_a_checkpoint_with_missing_files(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED, copy)
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    code, told = run(str(copy))
    assert code == 1
    assert found(told, "checkpoint")["state"] == "fault"
    assert "diffusion_pytorch_model.safetensors" in found(told, "checkpoint")["found"]
    assert found(run(str(tmp_path / "none"))[1], "checkpoint")["state"] == "fault"


def test_a_checkpoint_that_does_not_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged as it would be loaded: where it fits in turns alone, it is no fault, and that is said."""
    nbytes = ZImagePipeline.prepare(device="cpu").sources.nbytes
    monkeypatch.setattr(equipment, "available_memory", lambda: 10 * 2**20)
    monkeypatch.setattr(placing, "available_memory", lambda: sum(nbytes.values()) - 1)
    assert "text encoder and transformer take turns" in found(run()[1], "checkpoint")["found"]
    monkeypatch.setattr(placing, "available_memory", lambda: 10 * 2**20)
    code, told = run()
    assert code == 1
    assert "the model does not fit (placement auto): cpu has 10 MiB for them" in found(told, "checkpoint")["found"]
    assert found(told, "memory")["state"] == "warning"


def test_a_hub_that_may_not_be_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(run("owner/model")[1], "checkpoint")["state"] == "warning"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, told = run("owner/model")
    assert code == 1
    assert found(told, "hub")["state"] == "warning"
    assert "owner/model is not in the hub's cache, and HF_HUB_OFFLINE is set" in found(told, "checkpoint")["found"]
    assert "no/such/name is neither" in found(run("no/such/name")[1], "checkpoint")["found"]


def test_a_port_that_is_taken(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        code, told = run("--port", str(number))
    assert code == 0
    assert found(told, "port")["state"] == "warning"
    assert str(number) in found(told, "port")["found"]


def test_systems_that_max_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    assert installation.glibc().state == "fault"
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert installation.glibc().state == "fault"
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    assert installation.python().state == "fault"


def test_an_accelerator_that_max_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equipment, "accelerator_count", lambda: 0)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    said = [each for each in equipment.devices() if each.name == "accelerators"]
    assert [each.state for each in said] == ["warning"]
    assert "run nvidia-smi" in said[0].remedy


def test_libraries_that_an_nvidia_gpu_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equipment, "accelerator_count", lambda: 1)
    monkeypatch.setattr(equipment, "accelerator_api", lambda: "cuda")
    monkeypatch.setattr(equipment, "loaded", lambda library: library.name == "cuBLAS")
    assert [(each.name, each.state) for each in equipment.libraries()] == [("cuBLAS", "ok"), ("cuDNN", "fault")]


def test_a_check_that_breaks_is_a_fault_and_the_others_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("nothing answers")

    monkeypatch.setattr(places, "graph_cache", broken)
    code, told = run()
    assert code == 1
    assert "RuntimeError: nothing answers" in found(told, "compiled graphs")["found"]
    assert found(told, "checkpoint")["state"] == "ok"


def test_the_processor_is_named(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Chip @ 3 GHz\n")
    assert processor(tmp_path / "cpuinfo") == "A Chip @ 3 GHz"
    assert processor(tmp_path / "none")
