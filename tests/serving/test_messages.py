"""What is said of wrong input: in a user's words, and what to do."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.recognition import recognized
from max_zimage.cli.main import main
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.errors import CheckpointError
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.routes_images import parsed
from max_zimage.serving.http.schema import EDIT


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "x", "--count", "2.5"], "argument --count: must be a whole number of at least 1, got '2.5'"),
        (["generate", "x", "--count", "0"], "argument --count: must be at least 1, got 0"),
        (["generate", "x", "--height", "big"], "argument --height: must be a whole number, got 'big'"),
        (
            ["generate", "x", "--guidance", "much"],
            "argument --guidance: must be a number, or several as in 4,2,0 or 7-12, got 'much'",
        ),
        (["serve", "--max-seconds", "soon"], "argument --max-seconds: must be a number of seconds, got 'soon'"),
        (["serve", "--port", "http"], "argument --port: must be a whole number, got 'http'"),
        (["profile", "--repeats", "1e1"], "argument --repeats: must be a whole number of at least 1, got '1e1'"),
        (["generate", "x", "--output", ""], "--output is empty; give it a value, or leave it out"),
        (["generate", "x", "--model", ""], "--model is empty"),
        (["generate", "x", "--from", ""], "--from is empty"),
        (["generate", "x", "--weight-path", ""], "--weight-path is empty"),
        (["generate", "x", "--device", ""], "--device is empty"),
        (["generate", "x", "--step-cache", ""], "--step-cache is empty"),
        (["info", "--model", ""], "--model is empty"),
        (
            ["generate", os.fsdecode(b"na\xefve")],
            "the prompt is not text in UTF-8, the encoding of this system: byte 0xEF",
        ),
        (["generate", "x", "--negative", os.fsdecode(b"na\xefve")], "--negative is not text in UTF-8"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith(f"max-zimage: error: {says}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x80\x02}q\x00(X\x04\x00\x00\x00data" + bytes(99), "is a Python pickle, an old PyTorch file"),
        (b"\x1f\x8b\x08\x00" + bytes(99), "is compressed with gzip; unpack it"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "is a 7-Zip archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 (Keras) file"),
        (b"\x93NUMPY\x01\x00" + bytes(99), "is a NumPy file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a PNG picture"),
        (b'{"error": "not found, try again later"}', "is JSON text"),
        (b'\n  {"error": "not found, try again later"}', "is JSON text"),
        (b"\r\n<!doctype html><title>404</title>", "is a web page"),
        (bytes(4096), "begins with nothing but zeros"),
        (b"GGUF\x03\0\0\0" + struct.pack("<Q", ord("{")) + bytes(99), "is truncated: its header does not end"),
    ],
)
def test_other_kinds_under_a_weight_files_name(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        open_source([file])
    assert says in str(error.value)


@pytest.mark.parametrize("beginning", [b"{", b"\x80\x02", b"\x1f\x8b"])
def test_a_header_whose_length_begins_like_another_kind_is_read(beginning: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    length = int.from_bytes(beginning.ljust(8, b"\0"), "little")
    entry = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    file.write_bytes(struct.pack("<Q", length) + json.dumps(entry).encode().ljust(length) + bytes(4))
    assert list(open_source([file]).tensors) == ["w"]


def test_names_that_are_no_text_and_links_to_nothing(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xefve"))
    folder.mkdir()
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    os.rename(tmp_path / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"na\\udcefve/model\.safetensors: the name is not UTF-8, .*; rename it"):
        open_source([folder / "model.safetensors"])
    (tmp_path / "linked.safetensors").symlink_to("../../blobs/0123")
    with pytest.raises(CheckpointError, match=r"is a link to \.\./\.\./blobs/0123, which is not there: the download"):
        open_source([tmp_path / "linked.safetensors"])


LINKED = [
    *("model_index.json", "vae/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"),
    *("tokenizer/chat_template.jinja", "transformer/diffusion_pytorch_model.safetensors"),
]


@pytest.mark.parametrize("name", LINKED)
def test_a_download_that_was_cut_off(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The hub's cache holds links, and one to nothing is no file that is found, nor one that can be done without."""
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED, model)
    (model / name).unlink()
    (model / name).symlink_to("../blobs/0123")
    assert main(["info", "--model", str(model)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"max-zimage: error: {model / name} is a link to ../blobs/0123, which is not there: the download"
    )
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("decoder.conv_in.weight", "a VAE; put it into a folder named vae"),
        ("decoder.up.0.block.0.conv1.weight", "a VAE"),
        ("model.layers.0.self_attn.q_proj.weight", "a language model such as a text encoder; put it"),
        (
            "transformer.layers.0.attention.to_q.lora_A.weight",
            "a LoRA, which changes a model and is none itself; give it with --lora",
        ),
        ("lora_unet_double_blocks_0_img_attn_proj.alpha", "a LoRA"),
        ("diffusion_model.layers.0.feed_forward.w1.lokr_w1", "a LoRA"),
        ("diffusion_model.layers.0.attention_norm1.diff", "a LoRA"),
        ("first_stage_model.decoder.conv_in.weight", "a checkpoint of a whole pipeline in one file"),
        ("double_blocks.0.img_attn.qkv.weight", "a Flux transformer"),
        ("transformer_blocks.0.attn.to_q.weight", "a transformer of another model"),
        ("down_blocks.0.resnets.0.conv1.weight", "a UNet"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "a Stable Diffusion 3 transformer"),
    ],
)
def test_what_a_file_is(name: str, what: str) -> None:
    said = recognized(["logit_scale", name])
    assert said is not None
    assert said.startswith(what)
    assert recognized(["something"]) is None


@pytest.mark.parametrize(
    ("body", "says", "field"),
    [
        (
            {"image": {"image_url": "x"}},
            "image: input should be a valid string or input should be a valid array",
            "image",
        ),
        ({"image": [1]}, "image", "image"),
        ({"image": "x", "strength": "much"}, "strength: input should be a valid number, got 'much'", "strength"),
        ({"image": "x", "quality": 3}, "quality: input should be 'auto', 'low'", "quality"),
    ],
)
def test_fields_are_called_by_their_names(body: dict[str, object], says: str, field: str) -> None:
    with pytest.raises(ApiError) as error:
        parsed(EDIT, json.dumps({"prompt": "x", **body}).encode())
    assert says in str(error.value)
    assert error.value.param == field
    assert "str:" not in str(error.value)
    assert "list[" not in str(error.value)
