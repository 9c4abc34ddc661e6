"""Finding a model and its files, and reading their headers: each thing that can be wrong has its own message."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from max.graph.weights import GGUFWeights
from safetensors.numpy import save_file

from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.locate import (
    find_component_files,
    paths_of,
    read_config,
    resolve_model,
    route_weight_files,
)
from max_zimage.checkpoint.tensors import StoredTensor
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.errors import CheckpointError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The layout of a model, without weights."""
    directory = tmp_path / "model"
    directory.mkdir()
    shutil.copy(EMBEDDED / "model_index.json", directory)
    for component in ("text_encoder", "transformer", "vae"):
        (directory / component).mkdir()
        shutil.copy(EMBEDDED / component / "config.json", directory / component)
    return directory


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


class TestResolveModel:
    def test_directory(self) -> None:
        assert resolve_model(EMBEDDED) == EMBEDDED
        assert resolve_model(str(EMBEDDED)) == EMBEDDED

    def test_no_such_directory(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="there is no such directory, and a hub id has the form owner/name"):
            resolve_model(tmp_path / "nothing")
        with pytest.raises(CheckpointError, match=r"no model at \./a/b"):
            resolve_model("./a/b")
        with pytest.raises(CheckpointError, match="no model at owner/name"):  # a Path is never a hub id
            resolve_model(Path("owner/name"))

    def test_file(self) -> None:
        with pytest.raises(CheckpointError, match=r"is a file; give the directory that holds model_index\.json"):
            resolve_model(EMBEDDED / "model_index.json")

    def test_empty_directory(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="is empty"):
            resolve_model(tmp_path)

    def test_directory_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        with pytest.raises(CheckpointError, match=r"is no model: it holds no model_index\.json; found notes\.txt"):
            resolve_model(tmp_path)

    def test_another_pipeline(self, model: Path) -> None:
        (model / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        with pytest.raises(
            CheckpointError,
            match=r"model_index\.json is of no .* _class_name is \"FluxPipeline\" and must be one of ZImagePipeline,",
        ):
            resolve_model(model)

    def test_damaged_index(self, model: Path) -> None:
        (model / "model_index.json").write_text('{"_class_name": ')
        with pytest.raises(CheckpointError, match=r"model_index\.json is no JSON"):
            resolve_model(model)

    def test_hub_id_from_the_cache(self, hub_cache: Path) -> None:
        """Offline, as all tests are (conftest.py)."""
        revision = "0123456789abcdef0123456789abcdef01234567"
        repository = hub_cache / "models--someone--tiny-zimage"
        shutil.copytree(EMBEDDED, repository / "snapshots" / revision)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
        found = resolve_model("someone/tiny-zimage")
        assert found == repository / "snapshots" / revision
        assert find_component_files(found, "vae") == [found / "vae" / "diffusion_pytorch_model.safetensors"]

    def test_hub_id_that_is_not_in_the_cache(self, hub_cache: Path) -> None:
        with pytest.raises(
            CheckpointError, match=r"not completely, in the Hugging Face cache, and the hub cannot be reached"
        ):
            resolve_model("someone/tiny-zimage")

    def test_only_what_is_needed_is_downloaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub.utils._paths import filter_repo_objects

        wanted: list[str] = []

        def download(_: str, allow_patterns: list[str], revision: None) -> str:
            wanted.extend(allow_patterns)
            return str(EMBEDDED)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        resolve_model("someone/tiny-zimage")
        needed = [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model-00003-of-00003.safetensors",
            "text_encoder/model.safetensors.index.json",
            "tokenizer/tokenizer.json",
            "transformer/diffusion_pytorch_model.safetensors",
            "vae/config.json",
        ]
        other = ["README.md", "assets/showcase.jpg", "transformer/diffusion_pytorch_model.fp16.safetensors", "ema.bin"]
        assert list(filter_repo_objects(needed + other, allow_patterns=wanted)) == needed

    def test_hub_id_that_the_hub_does_not_know(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        class Unknown(RepositoryNotFoundError):
            def __init__(self) -> None:
                """Without the web response that the hub's client makes it from."""

        def download(_: str, allow_patterns: list[str], revision: None) -> str:
            raise Unknown

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        with pytest.raises(CheckpointError, match="no such directory here and no such repository on the hub"):
            resolve_model("someone/tiny-zimage")

    def test_download_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(_: str, allow_patterns: list[str], revision: None) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        with pytest.raises(CheckpointError, match=r"could not be downloaded: .*No space left"):
            resolve_model("someone/tiny-zimage")


def _index(folder: Path, *names: str) -> None:
    content = {"metadata": {}, "weight_map": {f"tensor.{i}": name for i, name in enumerate(names)}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))


class TestComponentFiles:
    def test_single_file_beside_other_variants(self, model: Path) -> None:
        for name in ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "diffusion_pytorch_model.ema"):
            (model / "vae" / f"{name}.safetensors").touch()
        assert find_component_files(model, "vae") == [model / "vae" / "diffusion_pytorch_model.safetensors"]

    def test_only_the_shards_that_the_index_names(self, model: Path) -> None:
        for name in ("a-2", "a-1", "old-1"):
            (model / "transformer" / f"{name}.safetensors").touch()
        _index(model / "transformer", "a-2.safetensors", "a-1.safetensors", "a-2.safetensors")
        folder = model / "transformer"
        assert find_component_files(model, "transformer") == [folder / "a-1.safetensors", folder / "a-2.safetensors"]

    def test_missing_shards(self, model: Path) -> None:
        (model / "transformer" / "a-1.safetensors").touch()
        _index(model / "transformer", "a-1.safetensors", "a-2.safetensors", "a-3.safetensors")
        with pytest.raises(CheckpointError, match=r"lacks 2 of the 3 shards .*: a-2\.safetensors, a-3\.safetensors"):
            find_component_files(model, "transformer")

    def test_shards_elsewhere(self, model: Path) -> None:
        _index(model / "transformer", "../vae/a.safetensors")
        with pytest.raises(CheckpointError, match=r"names files outside its folder: \.\./vae/a\.safetensors"):
            find_component_files(model, "transformer")

    @pytest.mark.parametrize(
        ("text", "says"), [("{", "is no JSON"), ("[]", "must hold a JSON object"), ("{}", "no weight_map")]
    )
    def test_damaged_index(self, model: Path, text: str, says: str) -> None:
        (model / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=says):
            find_component_files(model, "vae")

    def test_both_forms(self, model: Path) -> None:
        _index(model / "vae", "a.safetensors")
        (model / "vae" / "diffusion_pytorch_model.safetensors").touch()
        with pytest.raises(CheckpointError, match="holds both"):
            find_component_files(model, "vae")

    def test_no_weights(self, model: Path) -> None:
        (model / "text_encoder" / "pytorch_model.bin").touch()
        with pytest.raises(
            CheckpointError, match=r"neither model\.safetensors nor .*; found config\.json, pytorch_model\.bin"
        ):
            find_component_files(model, "text_encoder")

    def test_no_folder(self, model: Path) -> None:
        shutil.rmtree(model / "vae")
        with pytest.raises(
            CheckpointError, match=r"has no folder vae; found model_index\.json, text_encoder, transformer"
        ):
            find_component_files(model, "vae")

    def test_no_configuration(self, model: Path) -> None:
        assert read_config(model, "vae") == json.loads((EMBEDDED / "vae" / "config.json").read_text())
        (model / "vae" / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"vae/config\.json is missing; fetch the checkpoint again"):
            read_config(model, "vae")


def _file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(start: int, end: int, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


DAMAGED = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "three bytes": (b"abc", r"too short to be a safetensors file \(3 bytes\)"),
    "header longer than the file": (_file({}, length=1000), "header should be 1000 bytes long, and 2 bytes follow"),
    "no safetensors at all": (b"x" * 100, "is truncated, or no safetensors file"),
    "no JSON": (_file(b"{bad json"), "header is no JSON"),
    "no text": (_file(b"\xff\xfe{}"), "header is no JSON"),
    "a list": (_file([1, 2]), "no JSON object"),
    "without tensors": (_file({"__metadata__": {"format": "pt"}}), "holds no tensor"),
    "data cut off": (_file({"a": _tensor(0, 16)}, b"0" * 8), "is truncated: its tensors end at byte"),
    "data left over": (_file({"a": _tensor(0, 16)}, b"0" * 20), "is damaged: .*not fully covered"),
    "a hole": (_file({"a": _tensor(8, 24)}, b"0" * 24), "is damaged: .*invalid offset"),
    "shape against bytes": (_file({"a": _tensor(0, 8)}, b"0" * 8), "is damaged: .*invalid shape"),
    "unknown dtype": (_file({"a": _tensor(0, 4, dtype="Q7")}, b"0" * 4), "is damaged: .*Q7"),
    "no offsets": (_file({"a": {"dtype": "F32", "shape": [1]}}, b"0" * 4), "describes tensor a as"),
    "offsets reversed": (_file({"a": _tensor(16, 0)}, b"0" * 16), "describes tensor a as"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "gguf": (b"GGUF" + bytes(100), "is GGUF version 0"),
    "torch archive": (b"PK\x03\x04" + bytes(100), "is a PyTorch archive"),
    "web page": (b"<!DOCTYPE html><html></html>", "is a web page"),
}


class TestScan:
    @pytest.mark.parametrize("case", DAMAGED)
    def test_damaged_files(self, case: str, tmp_path: Path) -> None:
        content, says = DAMAGED[case]
        file = tmp_path / "weights.safetensors"
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"weights\.safetensors .*{says}|weights\.safetensors {says}"):
            open_source([file])

    def test_absent_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"absent\.safetensors cannot be read: No such file"):
            open_source([tmp_path / "absent.safetensors"])

    def test_all_damaged_files_are_named(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).touch()
        with pytest.raises(CheckpointError, match=r"(?s)/a is empty.*/b is empty"):
            open_source([tmp_path / "a", tmp_path / "b"])

    def test_tensor_in_two_files(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            save_file({"weight": np.ones(3, np.float32)}, tmp_path / name)
        with pytest.raises(CheckpointError, match=r"tensor weight is in two files, .*/a and .*/b"):
            open_source([tmp_path / "a", tmp_path / "b"])

    def test_places(self, tmp_path: Path) -> None:
        x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
        arrays: dict[str, np.ndarray] = {"x": x, "y": y}
        save_file(arrays, tmp_path / "a", metadata={"format": "pt"})
        tensors, content = open_source([tmp_path / "a"]).tensors, (tmp_path / "a").read_bytes()
        assert tensors.keys() == arrays.keys()
        for name, info in tensors.items():
            assert isinstance(info, StoredTensor)
            assert (info.dtype, info.shape) == ("F32" if name == "x" else "F16", arrays[name].shape)
            assert content[info.start : info.start + info.nbytes] == arrays[name].tobytes()


def test_routing() -> None:
    paths = [
        Path("/repo/vae/model.safetensors"),
        Path("/data/vae/zimage/turbo.safetensors"),
        Path("transformer/a.safetensors"),
        Path("z_image_turbo_bf16.safetensors"),
    ]
    assert route_weight_files(paths, ("text_encoder", "transformer", "vae"), "transformer") == {
        "vae": [paths[0]],
        "transformer": paths[1:],
    }


def test_weights_that_are_no_safetensors() -> None:
    with pytest.raises(CheckpointError, match="must be safetensors files, got GGUFWeights"):
        paths_of(GGUFWeights.__new__(GGUFWeights))
