"""Compiled graphs on disk: named by their contents, used again, replaced where damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef

from max_zimage import artifacts, compiler
from max_zimage.compiler import CompiledGraph, compile_graph, compile_together, wait_for
from max_zimage.devices import download, upload
from max_zimage.graphs.latents import PackLatents
from max_zimage.graphs.layers import build


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path))
    return tmp_path


def definition(name: str, channels: int, session: InferenceSession) -> CompiledGraph:
    module = build(lambda: PackLatents(channels), DType.float32, DeviceRef.CPU())
    types = module.input_types(DeviceRef.CPU())
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
    assert one is not None and other is not None
    weights = [{"weight": upload(np.zeros(1, np.float32), CPU())} for _ in range(2)]
    both = [replace(each, weights=data) for each, data in zip((one, other), weights, strict=True)]
    with pytest.raises(RuntimeError, match="graph other has other data for weight"):
        compiler._weights(both)
    assert compiler._weights([both[0], replace(both[1], weights=weights[0])]) == weights[0]


def test_graphs_of_one_name_are_not_compiled_together() -> None:
    session = InferenceSession([CPU()])
    with pytest.raises(RuntimeError, match=r"two graphs of one module have the same name: \['pack', 'pack'\]"):
        compile_together([definition("pack", channels, session) for channels in (4, 8)])


def test_other_types_are_another_artifact(folder: Path) -> None:
    packed(4)
    packed(8)
    assert len(list(folder.glob("*.mef"))) == 2


def test_a_damaged_artifact_is_made_again(folder: Path) -> None:
    expected = packed()
    (artifact,) = folder.glob("*.mef")
    whole = artifact.read_bytes()
    artifact.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(packed(), expected)
    assert artifact.stat().st_size == len(whole)


def test_a_folder_that_cannot_be_written_costs_only_the_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", "/proc/none")
    assert packed().shape == (1, 6, 16)


def test_those_used_longest_ago_are_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_KEPT", 1)
    packed(4)
    (first,) = folder.glob("*.mef")
    packed(8)
    (second,) = folder.glob("*.mef")
    assert second != first


def test_a_name_says_what_the_graph_contains(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(lambda: PackLatents(4), DType.float32, DeviceRef.CPU())
    types = module.input_types(DeviceRef.CPU())

    def path(name: str = "pack", spec: object = None) -> Path:
        return artifacts.artifact_path([name], [artifacts.artifact_key(name, spec, module, types, CPU())])

    assert path() == path()
    assert len({path(), path("other"), path(spec=1e-5), path(spec=1e-6)}) == 4
    before = path()
    monkeypatch.setattr(artifacts, "_sources_digest", lambda: "other sources")
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
