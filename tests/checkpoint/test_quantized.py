"""Quantized safetensors: an engine of such a file has to the bit the weights of one of what it decodes to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from safetensors.torch import load_file, save_file

from max_zimage.checkpoint import tensors
from max_zimage.checkpoint.config import text_encoder_spec, transformer_spec
from max_zimage.checkpoint.expand import ParameterTable, text_encoder_names, transformer_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.locate import read_config
from max_zimage.checkpoint.plan import LoadPlan, plan
from max_zimage.checkpoint.small_floats import E2M1, E4M3, E5M2, E8M0
from max_zimage.checkpoint.tensors import Files, Source, StoredTensor
from max_zimage.checkpoint.transforms import transformed
from max_zimage.checkpoint.transforms.base import computed
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.embedded import PATH as EMBEDDED
from tests.references.engine_weights import StateDict
from tests.references.quantized import FORMATS, write
from tests.references.tiny import original_transformer

WEIGHTS = {"text_encoder": "model.safetensors", "transformer": "diffusion_pytorch_model.safetensors"}


def names_of(component: str) -> ParameterTable:
    """What a file of the embedded model must hold."""
    config = read_config(EMBEDDED, component)
    if component == "transformer":
        return transformer_names(transformer_spec(config))
    spec = text_encoder_spec(config)
    return text_encoder_names(spec, spec.num_layers - 1)


def state_of(component: str) -> StateDict:
    """The embedded model's weights in float32."""
    return {name: values.float() for name, values in load_file(EMBEDDED / component / WEIGHTS[component]).items()}


def bits(buffer: Buffer) -> bytes:
    return buffer.view(DType.uint8, (buffer.num_elements * buffer.dtype.size_in_bytes,)).to_numpy().tobytes()


def same(found: LoadPlan, wanted: LoadPlan, dtype: ModelDtype) -> None:
    """Hold two plans to the same buffers."""
    ours, theirs = load(found, dtype), load(wanted, dtype)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if bits(ours[name]) != bits(theirs[name])] == []


def decoded_plan(component: str, decoded: StateDict, folder: Path) -> LoadPlan:
    """A plan of a file in float32."""
    file = folder / "decoded.safetensors"
    save_file({name: values.float().contiguous() for name, values in decoded.items()}, file)
    return plan(names_of(component), open_source([file]))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_transformer(form: str, naming: str, tmp_path: Path) -> None:
    """Queries, keys and values apart, each with a scale of its own, and as one matrix."""
    state = state_of("transformer")
    if naming == "original":
        state = original_transformer(state)
    file = tmp_path / "quantized" / "weights.safetensors"
    file.parent.mkdir()
    decoded = write(FORMATS[form], state, file, where="layers.1.")
    assert any(not torch.equal(decoded[name], state[name]) for name in state)
    found = plan(names_of("transformer"), open_source([file]))
    assert FORMATS[form].storage in found.storage
    wanted = decoded_plan("transformer", decoded, tmp_path)
    for dtype in DTYPES:
        same(found, wanted, dtype)
    assert found.nbytes("bfloat16") == wanted.nbytes("bfloat16")


@pytest.mark.parametrize("form", ["fp8 e4m3", "ComfyUI fp8", "fine-grained fp8", "bitsandbytes nf4, nested"])
def test_text_encoder(form: str, tmp_path: Path) -> None:
    file = tmp_path / "quantized" / "weights.safetensors"
    file.parent.mkdir()
    decoded = write(FORMATS[form], state_of("text_encoder"), file, where="layers.")
    found = plan(names_of("text_encoder"), open_source([file]))
    assert found.storage.keys() == {"F32", FORMATS[form].storage}
    same(found, decoded_plan("text_encoder", decoded, tmp_path), "float32")


@pytest.mark.parametrize("form", FORMATS)
def test_any_rows_alone(form: str, tmp_path: Path) -> None:
    """Across the borders of tiles and blocks, and with blocks that are cut at the end."""
    torch.manual_seed(0)
    width = max(FORMATS[form].multiple, 96) * 3
    state = {"a.weight": torch.randn(300, width), "b.weight": torch.randn(2, width), "a.bias": torch.zeros(300)}
    decoded = write(FORMATS[form], state, tmp_path / "weights.safetensors")
    read = transformed(open_source([tmp_path / "weights.safetensors"]), ()).tensors
    assert read.keys() == state.keys()
    for name, pieces in {
        "a.weight": [(0, 300), (1, 2), (100, 300), (127, 129), (5, 257)],
        "b.weight": [(0, 2)],
    }.items():
        assert read[name].shape == tuple(state[name].shape)
        for begin, end in pieces:
            rows = read[name].rows(begin, end, Files())
            np.testing.assert_array_equal(rows, decoded[name][begin:end].numpy())


@pytest.mark.parametrize(
    "form", ["ComfyUI nvfp4", "ComfyUI int8, rotated", "bitsandbytes nf4, nested", "fine-grained fp8"]
)
def test_a_few_rows_at_a_time(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding has a piece of a tensor in memory, whatever the tensor's size: at most a tile more than is asked for."""
    asked: list[int] = []
    before = StoredTensor.codes, StoredTensor.rows

    def codes(self: StoredTensor, begin: int, end: int, files: Files) -> object:
        asked.append((end - begin) * (self.size // self.shape[0]))
        return before[0](self, begin, end, files)

    def rows(self: StoredTensor, begin: int, end: int, files: Files) -> object:
        asked.append((end - begin) * (self.size // (self.shape[0] if self.shape else 1)))
        return before[1](self, begin, end, files)

    torch.manual_seed(0)
    write(FORMATS[form], {"a.weight": torch.randn(512, 512)}, tmp_path / "weights.safetensors")
    tensor = transformed(open_source([tmp_path / "weights.safetensors"]), ()).tensors["a.weight"]
    monkeypatch.setattr(tensors, "_CHUNK", 1 << 13)
    monkeypatch.setattr(StoredTensor, "codes", codes)
    monkeypatch.setattr(StoredTensor, "rows", rows)
    tensor.fill(np.empty(512 * 512, np.float32), Files())
    assert len(asked) >= 64
    assert max(asked) <= 1 << 13


def test_what_is_added_to_a_quantized_weight(tmp_path: Path) -> None:
    """As a LoRA is: to the decoded numbers, before they are rounded."""
    name = "layers.1.attention.to_k.weight"
    (tmp_path / "quantized").mkdir()
    file = tmp_path / "quantized" / "weights.safetensors"
    decoded = write(FORMATS["ComfyUI nvfp4"], state_of("transformer"), file, where="layers.1.")

    def added(source: Source) -> Source:
        tensor = source.tensors[name]
        return replace(
            source, tensors={**source.tensors, name: computed(tensor, lambda rows, *_: rows + np.float32(0.37))}
        )

    found = plan(names_of("transformer"), open_source([file]), [added])
    assert "nvfp4" in found.storage
    decoded[name] = decoded[name] + 0.37
    for dtype in DTYPES:
        same(found, decoded_plan("transformer", decoded, tmp_path), dtype)


def test_small_floats_are_torchs() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for table, dtype in ((E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2), (E8M0, torch.float8_e8m0fnu)):
        np.testing.assert_array_equal(table, codes.view(dtype).float().numpy())
    sizes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    np.testing.assert_array_equal(E2M1, [*sizes, *(-size for size in sizes)])


def test_float8_in_every_model_dtype(tmp_path: Path) -> None:
    """All codes of both kinds but those that are no numbers; bfloat16 holds each exactly."""
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        values = torch.arange(256, dtype=torch.uint8).view(dtype)
        save_file({"w": values}, tmp_path / "w.safetensors")
        tensor = open_source([tmp_path / "w.safetensors"]).tensors["w"]
        target = np.empty(256, np.uint16)
        tensor.fill(target, Files())
        ours = torch.from_numpy(target).view(torch.bfloat16).float()
        assert torch.equal(ours.nan_to_num(7), values.float().nan_to_num(7))
