"""Every text file of a checkpoint, harmed in every way: the same picture, or one line that names the file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.checkpoint.locate import find_component_files
from max_zimage.cli.main import main
from max_zimage.errors import CheckpointError
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.manifest import find_sources
from max_zimage.serving.context_tokenizer import ZImageTokenizer
from max_zimage.strict_json import read_object
from tests.references.checkpoints import BOM, DAMAGED, HARMLESS, JSON_FILES, TEMPLATE, copied
from tests.references.diffusers_runs import Pair

READ = [file for file in JSON_FILES if "generation_config" not in file]
PROMPT = "a red star on a blue background"


def prepared(model: Path) -> CheckedModel:
    return ZImagePipeline.prepare(model, device="cpu")


def served(config: CheckedModel) -> ZImageTokenizer:
    """What a server makes of it."""
    model = str(config.directory)
    return ZImageTokenizer(model, config.config, "tokenizer", max_length=512, default_num_inference_steps=50)


@pytest.mark.parametrize("harm", HARMLESS)
@pytest.mark.parametrize("file", [*JSON_FILES, TEMPLATE])
def test_what_editors_do_changes_nothing(tmp_path: Path, file: str, harm: str) -> None:
    model, usual = copied(tmp_path / "model"), prepared(copied(tmp_path / "usual"))
    HARMLESS[harm](model / file)
    found = prepared(model)
    assert (found.sources.specs, found.sources.defaults) == (usual.sources.specs, usual.sources.defaults)
    assert found.tokenizer.encode(PROMPT).tolist() == usual.tokenizer.encode(PROMPT).tolist()
    assert (served(found).limits, served(found).defaults) == (served(usual).limits, served(usual).defaults)


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("file", READ)
def test_what_is_wrong_is_said_with_the_file(tmp_path: Path, file: str, damage: str) -> None:
    model = copied(tmp_path / "model")
    harm, says = DAMAGED[damage]
    harm(model / file)
    with pytest.raises(CheckpointError) as caught:
        prepared(model)
    message = str(caught.value)
    assert "\n" not in message
    if (file, damage) == ("model_index.json", "missing"):
        assert f"{model} is no model: it holds no model_index.json" in message
    else:
        assert says in message
        assert str(model / file) in message


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("model_index.json", "_class_name is missing and must be one of ZImagePipeline,"),
        ("text_encoder/config.json", "holds an object without keys; fetch it again"),
        ("tokenizer/tokenizer.json", "holds no model, an object with the vocabulary; fetch it again"),
        ("vae/config.json", "holds an object without keys; fetch it again"),
    ],
)
def test_an_empty_object(tmp_path: Path, file: str, says: str) -> None:
    model = copied(tmp_path / "model")
    (model / file).write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        prepared(model)
    assert str(caught.value).startswith(f"{model / file} ")
    assert says in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "missing", "folder", "Latin-1", "deep"])
def test_a_file_that_is_not_read_may_be_anything(tmp_path: Path, damage: str) -> None:
    model = copied(tmp_path / "model")
    DAMAGED[damage][0](model / "text_encoder" / "generation_config.json")
    assert prepared(model).sources.defaults.num_inference_steps == 8


@pytest.mark.parametrize("damage", [name for name in DAMAGED if name != "missing"])
def test_the_index_of_shards(tmp_path: Path, damage: str) -> None:
    index = tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text('{"weight_map": {"a": "a-1.safetensors"}}')
    (index.parent / "a-1.safetensors").touch()
    HARMLESS["both"](index)
    assert find_component_files(tmp_path, "vae") == [index.parent / "a-1.safetensors"]
    harm, says = DAMAGED[damage]
    index.write_text('{"weight_map": {"a": "a-1.safetensors"}}')
    harm(index)
    with pytest.raises(CheckpointError) as caught:
        find_component_files(tmp_path, "vae")
    assert str(caught.value).startswith(f"{index} ")
    assert says in str(caught.value)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is no regular file"):
        read_object(tmp_path / "config.json")


def test_a_key_of_nested_objects_that_stands_twice(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": [{"b": 1, "b": 2}]}')
    with pytest.raises(CheckpointError, match=r"config\.json holds the key 'b' twice; correct it, or fetch it again"):
        read_object(tmp_path / "config.json")


def with_marks(folder: Path) -> Path:
    model = copied(folder)
    for file in (*JSON_FILES, TEMPLATE):
        (model / file).write_bytes(BOM + (model / file).read_bytes())
    return model


def test_byte_order_marks_everywhere_draw_the_same_picture(tmp_path: Path, embedded: Pair) -> None:
    asked: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "output_type": "np"}
    expected = embedded.ours("a red star", **asked)
    model = with_marks(tmp_path / "model")
    np.testing.assert_array_equal(ZImagePipeline.from_pretrained(model, device="cpu")("a red star", **asked), expected)
    flags = ["a red star", "--model", str(model), "--device", "cpu", "--seed", "3", "--steps", "2", "--quiet"]
    assert main(["generate", *flags, "--output", str(tmp_path / "star.png")]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "star.png")), expected[0])


def test_a_worker_reads_what_its_server_has_read(tmp_path: Path) -> None:
    """MAX sends its configuration to the worker's process, where it would read every file again, in its own way."""
    found = prepared(with_marks(tmp_path / "model"))
    config = pickle.loads(pickle.dumps(found.config))
    sources = find_sources(config, {}, "transformer", found.devices[0], 50)
    assert sources == found.sources


@pytest.mark.parametrize("command", [["info", "--model"], ["generate", "a star", "--model"], ["serve"]])
@pytest.mark.parametrize("damage", ["empty", "list", "trailing comma", "missing"])
def test_every_command_says_it_on_one_line(
    tmp_path: Path, command: list[str], damage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = copied(tmp_path / "model")
    harm, says = DAMAGED[damage]
    harm(model / "vae" / "config.json")
    code = main([*command, str(model), "--device", "cpu", *(["--port", "0"] if command == ["serve"] else [])])
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"max-zimage: error: {model / 'vae' / 'config.json'} ")
    assert says in line


@pytest.mark.parametrize("ids", [[408], [3, -1], [3, 2**31]])
def test_an_id_without_an_embedding_reaches_no_kernel(embedded: Pair, ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"token ids must be from 0 to 407, got -?\d+ to \d+; use the tokenizer of"):
        embedded.ours.text_encoder([np.array([1, 2]), np.array(ids)])
