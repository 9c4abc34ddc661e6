"""The compiled package of kernels, kept between processes: found by its contents, made again where it is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from max_zimage.compile import inner_loops, kept_kernels
from max_zimage.compile.kept_kernels import kept_package
from max_zimage.graphs import kernel_library


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "mojo_pkg_5.mojoc"
    path.write_bytes(os.urandom(5000))
    return path


def never() -> Path:
    raise AssertionError("it is compiled again")


def test_it_is_compiled_once(folder: Path, made: Path) -> None:
    whole = made.read_bytes()
    assert kept_package(lambda: made) == made
    made.unlink()
    kept = kept_package(never)
    assert (kept.parent.parent, kept.name, kept.read_bytes()) == (folder, made.name, whole)
    assert [path.name for path in folder.iterdir()] == [kept.parent.name]


@pytest.mark.parametrize("damage", [b"", b"another", None])
def test_a_damaged_one_is_made_again(folder: Path, made: Path, damage: bytes | None) -> None:
    kept_package(lambda: made)
    kept = kept_package(never)
    kept.write_bytes(kept.read_bytes()[:-1] if damage is None else damage)
    assert kept_package(lambda: made) == made
    assert kept_package(never).read_bytes() == made.read_bytes()
    assert len(list(folder.iterdir())) == 1


def test_other_sources_have_another(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that were not used for longest go, as what killed writers left does."""
    for version in range(6):
        monkeypatch.setattr(kept_kernels, "sources_digest", lambda version=version: str(version))
        kept_package(lambda: made)
        os.utime(kept_package(never).parent, (version, version))
    left = folder / ".max_zimage-kernels-abc"
    left.mkdir()
    (left / made.name).touch()
    os.utime(left, (0, 0))
    monkeypatch.setattr(kept_kernels, "sources_digest", lambda: "6")
    kept_package(lambda: made)
    assert len(list(folder.glob("kernels-*"))) == 4
    assert not left.exists()
    for version in (6, 5, 4, 3):
        monkeypatch.setattr(kept_kernels, "sources_digest", lambda version=version: str(version))
        kept_package(never)


def test_where_nothing_can_be_kept_it_is_compiled(
    folder: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.touch()  # no folder can be made of it
    assert kept_package(lambda: made) == kept_package(lambda: made) == made
    monkeypatch.setattr(kept_kernels, "artifact_folder", lambda: None)
    assert kept_package(lambda: made) == made


def test_graphs_are_given_what_was_kept(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again where a sweep has taken its file away."""
    assert kernel_library._bring is kept_package, inner_loops.__name__
    monkeypatch.setattr(kernel_library, "_package", [])
    monkeypatch.setattr(kernel_library, "_compiled", lambda: made)
    assert kernel_library.libraries() == [made]
    monkeypatch.setattr(kernel_library, "_compiled", never)
    assert kernel_library.libraries() == [made]
    made.unlink()
    (kept,) = kernel_library.libraries()
    assert folder in kept.parents
