"""GGUF: every type that the library decodes, names of both components, what is damaged, and what is something else."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, quants
from huggingface_hub import constants

from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.locate import find_component_files
from max_zimage.checkpoint.plan import plan
from max_zimage.checkpoint.tensors import Files, StoredTensor
from max_zimage.device.dtypes import DTYPES
from max_zimage.errors import CheckpointError
from tests.checkpoint.test_quantized import decoded_plan, names_of, same, state_of
from tests.references.gguf_files import MADE, Kind, llama_names, write, write_blocks
from tests.references.tiny import original_transformer

DECODED = [kind for kind in Kind if kind in quants._type_traits and kind != Kind.BF16]
TEXT: dict[str, Any] = {"architecture": "qwen3", "metadata": {"qwen3.rope.freq_base": 1e6, "qwen3.block_count": 4}}


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.name)
def test_every_type(kind: Kind, tmp_path: Path) -> None:
    """Random bits: every code, scales that are no numbers too; all rows, and some of them alone."""
    block, nbytes = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(kind.value).integers(0, 256, (7, 3 * nbytes), np.uint8)
    write_blocks(tmp_path / "w.gguf", {"first": (kind, data[:1]), "w": (kind, data)})
    tensor = open_source([tmp_path / "w.gguf"]).tensors["w"]
    assert (tensor.shape, tensor.storage, tensor.dtype) == ((7, 3 * block), kind.name, "F32")
    with np.errstate(all="ignore"):
        wanted = quants.dequantize(data, kind)
        for begin, end in ((0, 7), (3, 5), (6, 7)):
            np.testing.assert_array_equal(tensor.rows(begin, end, Files()), wanted[begin:end])


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.name)
def test_transformer(kind: Kind, tmp_path: Path) -> None:
    """Original names; a padding token with and without its first axis."""
    state = original_transformer(state_of("transformer"))
    state["x_pad_token"] = state["x_pad_token"].reshape(-1)
    decoded = write(tmp_path / "z.gguf", state, kind)
    found = plan(names_of("transformer"), open_source([tmp_path / "z.gguf"]))
    assert found.format == "GGUF, original single-file names"
    assert found.storage.keys() == {"F32", kind.name}
    decoded["x_pad_token"] = decoded["x_pad_token"].reshape(1, -1)
    wanted = decoded_plan("transformer", decoded, tmp_path)
    for dtype in DTYPES:
        same(found, wanted, dtype)


def test_bfloat16_and_float32_are_used_where_they_stand(tmp_path: Path) -> None:
    state = original_transformer(state_of("transformer"))
    write(tmp_path / "z.gguf", state, Kind.BF16, architecture="pig")
    tensors = open_source([tmp_path / "z.gguf"]).tensors
    assert {type(tensor) for tensor in tensors.values()} == {StoredTensor}
    assert tensors["layers.0.attention.qkv.weight"].in_place("bfloat16", Files()) is not None


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_files_of_stable_diffusion_cpp(prefix: str, tmp_path: Path) -> None:
    """Three matrices in place of one, names behind a prefix, no architecture that means anything."""
    pieces: dict[str, torch.Tensor] = {}
    wanted = original_transformer(state_of("transformer"))
    for name, values in wanted.items():
        if name.endswith("qkv.weight"):
            thirds = values.chunk(3)
            pieces |= {f"{prefix}{name}": thirds[0], f"{prefix}{name}.1": thirds[1], f"{prefix}{name}.2": thirds[2]}
        else:
            pieces[f"{prefix}{name}"] = values
    decoded = write(tmp_path / "z.gguf", pieces, Kind.Q8_0, architecture="")
    whole = {}
    for name in wanted:
        ends = ("", ".1", ".2") if name.endswith("qkv.weight") else ("",)
        whole[name] = torch.cat([decoded[f"{prefix}{name}{end}"] for end in ends])
    found = plan(names_of("transformer"), open_source([tmp_path / "z.gguf"]))
    same(found, decoded_plan("transformer", whole, tmp_path), "float32")

    del pieces[f"{prefix}layers.0.attention.qkv.weight.2"]
    write(tmp_path / "z.gguf", pieces, Kind.Q8_0)
    with pytest.raises(CheckpointError, match=r"z\.gguf holds .*qkv\.weight and .*\.1, and lacks .*\.2"):
        plan(names_of("transformer"), open_source([tmp_path / "z.gguf"]))


def test_a_shape_that_gguf_could_not_hold(tmp_path: Path) -> None:
    state = {"a": torch.arange(64.0).reshape(2, 32)}
    write(tmp_path / "a.gguf", state, Kind.Q8_0, metadata={"comfy.gguf.orig_shape.a": [4, 16]})
    tensor = open_source([tmp_path / "a.gguf"]).tensors["a"]
    decoded = quants.dequantize(quants.quantize(state["a"].numpy(), Kind.Q8_0), Kind.Q8_0).reshape(4, 16)
    assert tensor.shape == (4, 16)
    np.testing.assert_array_equal(tensor.rows(1, 4, Files()), decoded[1:4])
    write(tmp_path / "b.gguf", state, Kind.Q8_0, metadata={"comfy.gguf.orig_shape.a": [4, 17]})
    with pytest.raises(CheckpointError, match=r"tensor a is \[2, 32\] and should have been \[4, 17\]"):
        open_source([tmp_path / "b.gguf"])


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.BF16], ids=lambda kind: kind.name)
def test_text_encoder(kind: Kind, tmp_path: Path) -> None:
    state = state_of("text_encoder")
    renamed = llama_names(state)
    head = {"output.weight": renamed["token_embd.weight"]}
    decoded = write(tmp_path / "qwen.gguf", renamed | head, kind, **TEXT)
    found = plan(names_of("text_encoder"), open_source([tmp_path / "qwen.gguf"]))
    assert found.format == "GGUF, llama.cpp names"
    assert {"output.weight", "output_norm.weight"} <= found.dropped.keys()
    back = {name: decoded[other] for name in state for other in llama_names({name: state[name]})}
    same(found, decoded_plan("text_encoder", back, tmp_path), "float32")


def test_another_text_encoder_of_the_same_shapes(tmp_path: Path) -> None:
    """The 2507 series is told by its rotary base alone."""
    other = {"general.name": "Qwen3 4B Instruct 2507", "qwen3.rope.freq_base": 5e6}
    write(tmp_path / "q.gguf", llama_names(state_of("text_encoder")), Kind.Q8_0, architecture="qwen3", metadata=other)
    names = names_of("text_encoder")
    says = r"q\.gguf \(Qwen3 4B Instruct 2507\) has the rotary base 5000000\.0, that of the 2507 series, and the conf"
    with pytest.raises(CheckpointError, match=says):
        plan(names, open_source([tmp_path / "q.gguf"]))
    assert load(plan(replace(names, rope_theta=5e6), open_source([tmp_path / "q.gguf"])), "float32")


KINDS = {
    "split": ({"metadata": {"split.count": 3}}, "one of the 3 parts of a GGUF model; put them together first"),
    "LoRA": ({"metadata": {"general.type": "adapter"}}, "a LoRA in GGUF, which is not supported"),
    "mmproj": ({"architecture": "clip"}, "an mmproj file, the part of a language model that sees pictures"),
    "Flux": ({"architecture": "flux"}, "of another model, its architecture is 'flux'"),
    "Qwen-Image": ({"architecture": "qwen_image"}, "of another model, its architecture is 'qwen_image'"),
}


@pytest.mark.parametrize("what", KINDS)
def test_what_is_something_else(what: str, tmp_path: Path) -> None:
    written, says = KINDS[what]
    write(tmp_path / "other.gguf", {"w.weight": torch.zeros(2, 32)}, Kind.Q8_0, **written)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=rf"other\.gguf is {says}"):
        open_source([tmp_path / "other.gguf"])


def test_a_language_model_of_another_architecture(tmp_path: Path) -> None:
    """Its rows may stand in another order, under the same names."""
    write(tmp_path / "l.gguf", {"blk.0.attn_q.weight": torch.zeros(2, 32)}, Kind.Q8_0, architecture="llama")
    with pytest.raises(CheckpointError, match=r"a language model of architecture 'llama'; .* is Qwen3-4B"):
        open_source([tmp_path / "l.gguf"])


@pytest.mark.parametrize("component", ["text_encoder", "transformer"])
def test_one_component_for_the_other(component: str, tmp_path: Path) -> None:
    state = {"text_encoder": llama_names, "transformer": original_transformer}[component](state_of(component))
    write(tmp_path / "z.gguf", state, Kind.Q8_0, architecture="qwen3" if component == "text_encoder" else "lumina2")
    other = "transformer" if component == "text_encoder" else "text_encoder"
    what = "a language model such as a text encoder" if component == "text_encoder" else "a Z-Image transformer"
    with pytest.raises(CheckpointError, match=rf"{other}: .*z\.gguf holds none of the expected .* is {what}"):
        plan(names_of(other), open_source([tmp_path / "z.gguf"]))


def _header(version: int = 3, tensors: int = 1, kind: int = 0, size: int = 8) -> bytes:
    name = struct.pack("<Q", 1) + b"w"
    info = name + struct.pack("<IQIQ", 1, size, kind, 0)
    return b"GGUF" + struct.pack("<IQQ", version, tensors, 0) + info


DAMAGED = {
    "version 1": (_header(1) + bytes(100), "is GGUF version 1; supported are the little-endian versions 2 and 3"),
    "version 4": (_header(4) + bytes(100), "is GGUF version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file; convert it"),
    "other magic": (b"GGUX" + _header()[4:] + bytes(100), "is truncated, or no safetensors file"),
    "eight bytes": (b"GGUF" + bytes(4), "is truncated: no GGUF file is so short"),
    "header cut off": (_header()[:40], "is truncated: its header does not end within it"),
    "data cut off": (_header(size=64) + bytes(32), "tensor w ends at byte 3"),
    "no tensors": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "holds no tensor"),
    "many tensors": (_header(tensors=1 << 40), f"its header speaks of {1 << 40} tensors"),
    "unknown type": (_header(kind=4) + bytes(100), "tensor w is of type 4, which is not supported"),
    "type without a decoder": (_header(kind=15) + bytes(100), "tensor w is of Q8_K, which is not supported"),
    "type of whole numbers": (_header(kind=26) + bytes(100), "tensor w is of I32, which is not supported"),
    "no whole blocks": (_header(kind=8, size=33) + bytes(100), r"tensor w of shape \[33\] is no whole number of Q8_0"),
    "unknown value": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<II", 99, 0),
        "a value of the unknown kind 99",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(case: str, tmp_path: Path) -> None:
    content, says = DAMAGED[case]
    (tmp_path / "w.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"w\.gguf .*{says}"):
        open_source([tmp_path / "w.gguf"])


def test_every_length_of_a_header_that_was_cut_off(tmp_path: Path) -> None:
    """Whatever is missing, it is said, and nothing else goes wrong."""
    write(tmp_path / "w.gguf", {"a": torch.zeros(2, 32), "b": torch.zeros(3)}, Kind.Q8_0, metadata={"x.y": "words"})
    content = (tmp_path / "w.gguf").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        if length == len(content) - 1 or len(content) - length < 32:
            continue  # the padding behind the last tensor
        with pytest.raises(CheckpointError):
            open_source([tmp_path / "cut.gguf"])


def test_a_tokenizer_is_passed_over(tmp_path: Path) -> None:
    """Long lists are of no use; short ones are kept."""
    lists = {"tokenizer.ggml.tokens": [str(i) for i in range(1000)], "tokenizer.ggml.scores": list(range(1000))}
    write(tmp_path / "w.gguf", {"a": torch.ones(2, 32)}, Kind.F32, metadata={**lists, "k": [1, 2]})
    source = open_source([tmp_path / "w.gguf"])
    (metadata,) = source.metadata.values()
    assert metadata["tokenizer.ggml.tokens"] is None
    assert metadata["tokenizer.ggml.scores"] is None
    assert metadata["k"] == [1, 2]
    assert source.tensors["a"].rows(0, 2, Files()).sum() == 64


class TestGgufInAFolder:
    """Where a checkpoint's folder has no safetensors."""

    def test_one_file_and_shards(self, tmp_path: Path) -> None:
        (tmp_path / "z-Q8_0.gguf").touch()
        assert find_component_files(tmp_path, "transformer", flat=True) == [tmp_path / "z-Q8_0.gguf"]
        (tmp_path / "z-Q8_0.gguf").unlink()
        parts = [tmp_path / f"z-0000{number}-of-00002.gguf" for number in (1, 2)]
        for part in parts:
            part.touch()
        assert find_component_files(tmp_path, "transformer", flat=True) == parts
        (tmp_path / "diffusion_pytorch_model.safetensors").touch()
        (file,) = find_component_files(tmp_path, "transformer", flat=True)
        assert file.name == "diffusion_pytorch_model.safetensors"

    def test_several_and_too_few(self, tmp_path: Path) -> None:
        (tmp_path / "z-00001-of-00003.gguf").touch()
        with pytest.raises(CheckpointError, match=r"holds 1 of the 3 shards of z-00001-of-00003\.gguf"):
            find_component_files(tmp_path, "transformer", flat=True)
        (tmp_path / "z-Q4_0.gguf").touch()
        with pytest.raises(CheckpointError, match=r"several GGUF files: .*z-Q4_0\.gguf; leave one, or name it"):
            find_component_files(tmp_path, "transformer", flat=True)

    def test_those_of_a_hub_id_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A repository may hold a dozen of one model, and none of them is fetched."""
        (tmp_path / "transformer").mkdir()
        with pytest.raises(CheckpointError, match=r"nor a GGUF file; found [^;]*$"):
            find_component_files(tmp_path, "transformer")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path.parent))
        with pytest.raises(CheckpointError, match=r"hub id are not fetched: .* by --weight-path"):
            find_component_files(tmp_path, "transformer")
