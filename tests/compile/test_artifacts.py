"""Compiled graphs on disk: named by their contents, used again, replaced where damaged."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from max.driver import CPU
from max.dtype import DType
from max.engine import CompiledModel, InferenceSession
from max.graph import DeviceRef

from max_zimage.compile import artifacts, compiler, modules
from max_zimage.compile.compiler import CompiledGraph, compile_graph, compile_together, wait_for
from max_zimage.compile.kept_kernels import PREFIX
from max_zimage.compile.turns import FILE
from max_zimage.device.devices import download, upload
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.latents import PackLatents
from max_zimage.host import folders
from max_zimage.progress import Silent
from tests.fuzzers.artifacts import DAMAGES


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path))
    artifacts._say_once.cache_clear()
    return tmp_path


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was said, in order."""
    said: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda self, text: said.append(text))
    return said


def definition(name: str, channels: int, session: InferenceSession) -> CompiledGraph:
    module = build(lambda: PackLatents(channels), DType.float32, DeviceRef.CPU())
    types = module.input_types(DType.float32, DeviceRef.CPU())
    return compile_graph(name, module, types, {}, session, spec=None, device=CPU())


def run(graph: CompiledGraph, channels: int) -> np.ndarray:
    latents = np.arange(channels * 4 * 6, dtype=np.float32).reshape(1, channels, 2, 2, 3, 2)
    return download(graph(upload(latents, CPU()))[0])


def packed(channels: int = 4) -> np.ndarray:
    """Pack the same latents with a graph made afresh."""
    return run(definition("pack", channels, InferenceSession([CPU()])), channels)


def test_a_second_start_traces_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = packed()
    assert len(list(folder.glob("*.mef"))) == 1
    monkeypatch.setattr(PackLatents, "forward", lambda self, latents: pytest.fail("traced again"))
    np.testing.assert_array_equal(packed(), expected)


def test_a_cpu_compiles_all_graphs_as_one_module_and_an_accelerator_one_by_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = InferenceSession([CPU()])

    def graphs() -> list[CompiledGraph]:
        return [definition(name, channels, session) for name, channels in (("four", 4), ("eight", 8))]

    both = graphs()
    wait_for(both)
    assert [path.name.split("-")[0] for path in folder.glob("*.mef")] == ["four+eight"]
    for graph, channels in zip(both, (4, 8), strict=True):
        assert graph.pending is None
        assert run(graph, channels).shape == (1, 6, 4 * channels)

    seen = []
    monkeypatch.setattr(compiler, "compile_together", lambda group: seen.append([graph.name for graph in group]))
    monkeypatch.setattr(compiler, "_on_host", lambda graphs: False)
    wait_for(graphs())
    assert seen == [["four"], ["eight"]]


def test_graphs_that_disagree_about_a_weight_are_not_compiled_together() -> None:
    one, other = (definition(name, 4, InferenceSession([CPU()])).pending for name in ("one", "other"))
    assert one is not None
    assert other is not None
    weights = [{"weight": upload(np.zeros(1, np.float32), CPU())} for _ in range(2)]
    both = [replace(each, weights=data) for each, data in zip((one, other), weights, strict=True)]
    with pytest.raises(RuntimeError, match="graph other has other data for weight"):
        modules.weights_of(both)
    assert modules.weights_of([both[0], replace(both[1], weights=weights[0])]) == weights[0]


def test_graphs_of_one_name_are_not_compiled_together() -> None:
    session = InferenceSession([CPU()])
    with pytest.raises(RuntimeError, match=r"two graphs of one module have the same name: \['pack', 'pack'\]"):
        compile_together([definition("pack", channels, session) for channels in (4, 8)])


def test_other_types_are_another_artifact(folder: Path) -> None:
    packed(4)
    packed(8)
    assert len(list(folder.glob("*.mef"))) == 2


@pytest.mark.parametrize("kind", [*DAMAGES, "of another graph"])
def test_a_damaged_artifact_is_made_again(
    kind: str, folder: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAX runs whatever bytes it is given, and the process ends in an illegal instruction: it must not see them."""
    expected = packed()
    (artifact,) = folder.glob("*.mef")
    whole = artifact.read_bytes()
    if kind in DAMAGES:
        artifact.write_bytes(DAMAGES[kind](whole, Random(0)))
    else:
        monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(folder / "other"))
        packed(8)
        monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(folder))
        (other,) = (folder / "other").glob("*.mef")
        artifact.unlink()
        os.link(other, artifact)
    loaded: list[object] = []
    load = InferenceSession.compile

    def watched(self: InferenceSession, model: Any, **more: Any) -> CompiledModel:
        loaded.append(model)
        return load(self, model, **more)

    monkeypatch.setattr(InferenceSession, "compile", watched)
    np.testing.assert_array_equal(packed(), expected)
    assert artifact not in loaded
    assert notes == [f"{artifact} was damaged; its graphs are compiled again"]
    (again,) = folder.glob("*.mef")
    assert len(again.read_bytes()) == len(whole)
    np.testing.assert_array_equal(packed(), expected)
    assert loaded[-1] == again
    assert len(notes) == 1


def test_a_folder_in_an_artifacts_place_is_left_alone(folder: Path, notes: list[str]) -> None:
    expected = packed()
    (artifact,) = folder.glob("*.mef")
    artifact.unlink()
    artifact.mkdir()
    np.testing.assert_array_equal(packed(), expected)
    assert notes[0] == f"{artifact} cannot be read: Is a directory; its graphs are compiled again"


def besides(folder: Path) -> list[str]:
    """What is kept but turns and the package of kernels."""
    return [path.name for path in folder.iterdir() if not path.name.startswith((FILE, PREFIX))]


def no_space(self: CompiledModel, path: Path) -> None:
    """What MAX 26.7 raises on a full disk, and what it leaves there."""
    Path(path).write_bytes(b"half")
    raise ValueError("available space in disk less than requested size")


def test_what_cannot_be_kept_is_computed_all_the_same(
    folder: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = packed()
    (artifact,) = folder.glob("*.mef")
    artifact.unlink()
    monkeypatch.setattr(CompiledModel, "export_mef", no_space)
    for _ in range(2):
        np.testing.assert_array_equal(packed(), expected)
    assert besides(folder) == []
    (note,) = notes  # said once, however often it happens
    assert note == (
        f"compiled graphs cannot be kept in {folder}: available space in disk less than requested size; set "
        "MAX_ZIMAGE_CACHE to a folder with room; every start will compile again"
    )


def test_a_limit_of_file_sizes_costs_the_artifact_only(
    folder: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_MAX_ROOM", 0)  # so that MAX's own cache has what is compiled here
    expected = packed()
    (artifact,) = folder.glob("*.mef")
    limit, session = artifact.stat().st_size // 2, InferenceSession([CPU()])
    artifact.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        got = run(definition("pack", 4, session), 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    np.testing.assert_array_equal(got, expected)
    assert besides(folder) == []
    (note,) = notes
    assert "File too large" in note


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null/none"])
def test_a_folder_that_cannot_be_written_costs_only_the_artifact(
    place: str, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", place)
    assert packed().shape == (1, 6, 16)
    (note,) = notes
    assert note.startswith(f"compiled graphs cannot be kept in {place}: ")


def test_a_user_without_a_home_keeps_nothing(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(kind: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MAX_ZIMAGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(nobody))
    assert packed().shape == (1, 6, 16)
    assert notes == [
        "compiled graphs cannot be kept, for this user has no home; set MAX_ZIMAGE_CACHE to a folder with room; every "
        "start will compile again"
    ]
    with pytest.raises(ValueError, match="this user has no home; set MAX_ZIMAGE_CACHE"):
        artifacts.check_writable()


def test_what_a_killed_writer_left_is_removed_and_what_others_write_is_not(folder: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from max_zimage.compile import artifacts\n"
        "with artifacts.scratch(Path(sys.argv[1])) as (_, path): print(path, flush=True); time.sleep(600)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        dead, alive = (Path(str(writer.stdout and writer.stdout.readline().strip())) for writer in writers)
        writers[0].kill()
        writers[0].wait()
        others = [
            folder / name
            for name in ("tmpold_1234.part", "tmpnew_1234.part", "notes.part", ".max_zimage-new_1234.part")
        ]
        for path in others:
            path.touch()
        for path in (dead, alive, others[0], others[2]):
            os.utime(path, (0, 0))
        packed()
        assert {path for path in folder.iterdir() if path.suffix == ".part"} == {alive, *others[1:]}
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()


def test_those_used_longest_ago_are_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_KEPT", 1)
    packed(4)
    (first,) = folder.glob("*.mef")
    packed(8)
    (second,) = folder.glob("*.mef")
    assert second != first


def test_a_name_says_what_the_graph_contains(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(lambda: PackLatents(4), DType.float32, DeviceRef.CPU())
    types = module.input_types(DType.float32, DeviceRef.CPU())

    def path(name: str = "pack", spec: object = None) -> str:
        key = artifacts.artifact_key(name, spec, module, types, CPU(), loop="pairs")
        return artifacts.artifact_name([name], [key])

    assert path() == path()
    assert len({path(), path("other"), path(spec=1e-5), path(spec=1e-6)}) == 4
    before = path()
    monkeypatch.setattr(artifacts, "sources_digest", lambda: "other sources")
    assert path() != before


def test_sources_are_the_same_in_a_checkout_and_in_a_package(tmp_path: Path) -> None:
    checkout, package = tmp_path / "checkout", tmp_path / "package"
    for kernels in (checkout / "kernels", package / "max_zimage" / "kernels"):
        kernels.mkdir(parents=True)
        (kernels / "op.mojo").write_text("fn op")
    for root in (checkout, package / "max_zimage"):
        (root / "graphs").mkdir(exist_ok=True)
        (root / "graphs" / "a.py").write_text("a = 1")
        (root / "graphs" / "z.py").write_text("z = 1")
    here = artifacts.digest_of(checkout / "graphs", checkout / "kernels")
    assert here == artifacts.digest_of(package / "max_zimage" / "graphs", package / "max_zimage" / "kernels")
    (checkout / "graphs" / "z.py").rename(checkout / "graphs" / "y.py")
    assert here != artifacts.digest_of(checkout / "graphs", checkout / "kernels")
