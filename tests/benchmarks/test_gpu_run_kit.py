"""What is carried to a machine without a network: packed in parts, put together again, whole or not at all."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu_run import pack
from benchmarks.gpu_run.compile import file_of, keep
from benchmarks.gpu_run.unpack import MANIFEST, unpack, use, word
from benchmarks.measure import ROOT


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packed from two wheels and two artifacts, in parts of 1 MiB or less."""
    work = tmp_path / "work"
    for name, content in {"graphs/denoise-1.2.mef": bytes(3000), "variants/blocks-3.mef": b"graph"}.items():
        (work / name).parent.mkdir(parents=True)
        (work / name).write_bytes(content)

    def download(wanted: list[str], python: str, folder: Path) -> None:
        assert python == "3.12"
        assert "max==26.7.0" in wanted
        folder.mkdir()
        wheel(folder / "max-1.whl", {"modular/lib/libmax.so": noise(3 << 20), "modular/bin/mojo": b"compiler"})
        scripts = {"diffusers/__init__.py": b"POINTS = 5\n", "modular/lib/nixl/plug.so": b"x"}
        wheel(folder / "diffusers-1.whl", {**scripts, "diffusers-1.data/scripts/run": b"x"})

    monkeypatch.setattr(pack, "downloaded", download)
    assert pack.main([str(tmp_path / "kit"), "--work", str(work), "--part-mib", "1", "--preset", "0"]) == 0
    return tmp_path / "kit"


def noise(count: int) -> bytes:
    """What does not compress."""
    return random.Random(1).randbytes(count)


def wheel(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_everything_comes_back_but_the_compiler_where_its_parts_are_not(kit: Path, tmp_path: Path) -> None:
    manifest = json.loads((kit / MANIFEST).read_text())
    assert list(manifest["archives"]) == ["packages", "graphs", "compiler"]
    sizes = [(kit / part).stat().st_size for part in manifest["archives"]["packages"]["parts"]]
    assert len(sizes) >= 3
    assert max(sizes) == sizes[0] == 1 << 20
    for part in manifest["archives"]["compiler"]["parts"]:
        (kit / part).rename(tmp_path / part)
    there = tmp_path / "there"
    assert unpack(kit, there) == ["packages", "graphs"]
    assert (there / "site/modular/lib/libmax.so").read_bytes() == noise(3 << 20)
    assert b"not among what was packed" in (there / "site/modular/bin/mojo").read_bytes()
    assert (there / "graphs/denoise-1.2.mef").read_bytes() == bytes(3000)
    assert (there / "variants/blocks-3.mef").read_bytes() == b"graph"
    names = {path.relative_to(there / "site").as_posix() for path in (there / "site").rglob("*") if path.is_file()}
    assert names == {"modular/lib/libmax.so", "modular/bin/mojo", "diffusers/__init__.py", "av/__init__.py"}
    assert word(there, "commit") == manifest["commit"] != ""
    for part in manifest["archives"]["compiler"]["parts"]:
        (tmp_path / part).rename(kit / part)
    assert unpack(kit, there) == ["packages", "graphs", "compiler"]
    assert (there / "site/modular/bin/mojo").read_bytes() == b"compiler"


def test_a_part_that_is_missing_or_damaged_is_named(kit: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    part = kit / "packages.01"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"packages: its \d parts in .* are not what was packed; copy them again"):
        unpack(kit, there)
    part.unlink()
    with pytest.raises(ValueError, match=r"packages: packages\.01 of \d parts are not in"):
        unpack(kit, there)
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        unpack(tmp_path, there)
    assert not (there / "site").exists()


def test_one_archive_is_made_anew_and_the_others_stay(kit: Path, tmp_path: Path) -> None:
    before = json.loads((kit / MANIFEST).read_text())["archives"]
    (tmp_path / "work/variants/blocks-3.mef").write_bytes(b"another graph")
    assert pack.main([str(kit), "--work", str(tmp_path / "work"), "--only", "graphs"]) == 0
    after = json.loads((kit / MANIFEST).read_text())["archives"]
    assert after["packages"] == before["packages"]
    assert after["graphs"] != before["graphs"]
    unpack(kit, tmp_path / "there")
    assert (tmp_path / "there/variants/blocks-3.mef").read_bytes() == b"another graph"


def test_without_artifacts_nothing_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main([str(tmp_path / "kit"), "--work", str(tmp_path), "--only", "graphs"]) == 1
    assert f"there are no artifacts in {tmp_path}; run benchmarks.gpu_run.compile" in capsys.readouterr().err


def test_versions_are_those_that_everything_was_tested_with() -> None:
    wanted = pack.specs((ROOT / "constraints.txt").read_text())
    assert {"max==26.7.0", "mojo-compiler==1.2.0", "transformers==5.12.1", "huggingface_hub==1.33.0"} <= set(wanted)
    with pytest.raises(ValueError, match=r"has no version of max, "):
        pack.specs("# max==1\nrich==1.0\n")


def test_the_command_starts_without_any_package(tmp_path: Path) -> None:
    """It is what brings them."""
    command = [sys.executable, "-S", "-m", "benchmarks.gpu_run.unpack", str(tmp_path), "--work", str(tmp_path / "work")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 1
    assert (
        said.stderr
        == f"unpack: {tmp_path} holds no manifest.json; name the folder that benchmarks.gpu_run.pack has made\n"
    )


def test_what_was_unpacked_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("MAX_ZIMAGE_CACHE", "MODULAR_CACHE_DIR", "HF_HUB_OFFLINE", "OTEL_SDK_DISABLED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", "tests")
    (tmp_path / "site").mkdir()
    use(tmp_path, small=False)
    code = "import os, sys; print(sys.path[1], os.environ['MAX_ZIMAGE_CACHE'], os.environ['HF_HUB_OFFLINE'])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert said.split() == [str(tmp_path / "site"), str(tmp_path / "graphs"), "1"]
    assert sys.path[:2] == [str(tmp_path / "site"), str(ROOT)]


def test_an_artifact_of_other_sources_goes_when_the_new_one_is_there(tmp_path: Path) -> None:
    class Compiled:
        def export_mef(self, path: Path) -> None:
            path.write_bytes(b"new")

    file = file_of(tmp_path, "own_ops")
    old, other = file.with_name("own_ops-0123456789ab.mef"), file.with_name("blocks-0123456789ab.mef")
    file.parent.mkdir()
    for each in (old, other):
        each.write_bytes(b"old")
    keep(Compiled(), file)  # type: ignore[arg-type]
    assert sorted(file.parent.iterdir()) == sorted([file, other])
    assert file.read_bytes() == b"new"
