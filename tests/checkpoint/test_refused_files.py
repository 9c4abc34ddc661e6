"""Weight files that are refused: each by name, with the tensor that is wrong and with what to use instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.plan import plan
from max_zimage.checkpoint.transforms import transformed
from max_zimage.errors import CheckpointError
from tests.checkpoint.test_quantized import names_of, state_of
from tests.references.engine_weights import StateDict
from tests.references.quantized import FORMATS, Writer, write

Change = Callable[[StateDict], object]
L = "layers.0.attention.out"
FLOAT8, BYTES = torch.float8_e4m3fn, torch.uint8


def layer_of(form: str) -> StateDict:
    """One layer of a format, 32 x 256."""
    torch.manual_seed(1)
    write: Writer = FORMATS[form].write
    made, _ = write(torch.randn(32, 256))
    return {**FORMATS[form].markers, **{f"{L}.{end}": tensor.contiguous() for end, tensor in made.items()}}


def _says(**words: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(words).encode()), dtype=BYTES)


def _set(name: str, value: torch.Tensor) -> Change:
    def change(state: StateDict) -> None:
        state[f"{L}.{name}"] = value

    return change


def _without(name: str) -> Change:
    return lambda state: state.pop(f"{L}.{name}")


OLD, NEW, NVFP4, INT8 = "ComfyUI scaled fp8, old", "ComfyUI fp8", "ComfyUI nvfp4", "ComfyUI int8, rotated"
WRONG: dict[str, tuple[str, Change, str]] = {
    "scaled, one scale missing": (
        OLD,
        _without("scale_weight"),
        f"{L} has no scale_weight, and scaled_fp8 says it must",
    ),
    "a scale beside bfloat16": (
        OLD,
        _set("weight", torch.zeros(32, 256, dtype=torch.bfloat16)),
        rf"{L}\.weight is BF16 \[32, 256\] and must be F8_E4M3 or F8_E5M2 of 2 dimensions, for it has",
    ),
    "a scale beside no weight": (OLD, _without("weight"), f"{L} has a scale and no weight"),
    "scale 0": (
        OLD,
        _set("scale_weight", torch.tensor(0.0)),
        r"scale_weight holds 0\.0, and a scale is a finite number",
    ),
    "scale NaN": (NEW, _set("weight_scale", torch.tensor(float("nan"))), "weight_scale holds nan, and a scale is"),
    "scale infinite": (NEW, _set("weight_scale", torch.tensor(float("inf"))), "weight_scale holds inf, and a scale is"),
    "scale negative": (NEW, _set("weight_scale", torch.tensor(-1.0)), r"weight_scale holds -1\.0, and a scale is"),
    "two scales": (NEW, _set("weight_scale", torch.ones(2)), r"weight_scale is F32 \[2\] and must be one number or"),
    "described, no scale": (NEW, _without("weight_scale"), f"{L} has no weight_scale"),
    "described and bfloat16": (NEW, _set("weight", torch.zeros(32, 256).bfloat16()), "is BF16 .* and must be F8_E4M3"),
    "no JSON": (NEW, _set("comfy_quant", torch.tensor([123], dtype=BYTES)), f"{L}.comfy_quant: is no JSON: "),
    "nvfp4 without its second scale": (NVFP4, _without("weight_scale_2"), f"{L} has no weight_scale_2"),
    "nvfp4 of another width": (
        NVFP4,
        _set("weight", torch.zeros(32, 100, dtype=BYTES)),
        f"{L} has 200 inputs in groups of 16; they must be whole groups of 16",
    ),
    "nvfp4, scales of another width": (
        NVFP4,
        _set("weight_scale", torch.zeros(128, 8, dtype=FLOAT8)),
        r"weight_scale is F8_E4M3 \[128, 8\] and must hold 2048 numbers of F8_E4M3",
    ),
    "nvfp4 with scaled inputs": (
        NVFP4,
        _set("pre_quant_scale", torch.ones(256)),
        "has a pre_quant_scale, which is not",
    ),
    "nvfp4, padded": (
        NVFP4,
        _set("comfy_quant", _says(format="nvfp4", orig_shape=[30, 256])),
        r"weight is \[32, 256\] and was \[30, 256\]: it is padded",
    ),
    "mxfp8 of another group": (
        "ComfyUI mxfp8",
        _set("comfy_quant", _says(format="mxfp8", group_size=16)),
        "groups of 32",
    ),
    "a word that is not known": (
        NEW,
        _set("comfy_quant", _says(format="float8_e4m3fn", shift=1)),
        "says shift, which is",
    ),
    "rotated in other groups": (
        INT8,
        _set("comfy_quant", _says(format="int8_tensorwise", convrot=True, convrot_groupsize=128)),
        f"{L} is rotated in groups of 128; its 256 inputs must be whole groups of 16, 64, 256, 1024",
    ),
    **{
        form: (
            INT8,
            _set("comfy_quant", _says(format=form)),
            f'{L} is in the format "{form}", which is not supported',
        )
        for form in ("convrot_w4a4", "asym_w4a8_int8", "awq_w4a16", "hybrid_mxfp8", "float8_e4m3fn_blockwise")
    },
    "bytes of unknown format": (
        NVFP4,
        lambda state: [
            state.pop(f"{L}.{name}") for name in ("comfy_quant", "weight_scale", "weight_scale_2", "input_scale")
        ],
        rf"{L}\.weight is packed 4-bit of unknown format, for it has neither comfy_quant nor quant_state",
    ),
    "int8 of unknown format": (
        INT8,
        lambda state: [state.pop(f"{L}.{name}") for name in ("comfy_quant", "weight_scale")],
        rf"{L}\.weight is int8 of unknown format",
    ),
    "a scale that nothing explains": (
        NVFP4,
        _without("comfy_quant"),
        f"{L} has a weight_scale, and neither a comfy_quant beside it nor a quantization_config",
    ),
    "fine-grained, other blocks": (
        "fine-grained fp8",
        _set("weight_scale_inv", torch.ones(4, 4)),
        r"weight_scale_inv is F32 \[4, 4\] and must be one number or \[1, 2\]",
    ),
    "nf4 of another length": (
        "bitsandbytes nf4",
        _set("weight", torch.zeros(100, 1, dtype=BYTES)),
        r"weight is U8 \[100, 1\] and must be U8 \[4096, 1\] of \[32, 256\]",
    ),
    "nf4 without its table": ("bitsandbytes nf4", _without("weight.quant_map"), f"{L} has no weight.quant_map"),
    "nf4, half nested": (
        "bitsandbytes nf4, nested",
        _without("weight.nested_absmax"),
        f"{L} has no weight.nested_absmax",
    ),
    "nf4 without a state": (
        "bitsandbytes nf4",
        _set("weight.quant_state.bitsandbytes__nf4", _says(shape=[32])),
        "its quant_state must hold shape, blocksize and quant_type",
    ),
    "int8 in another order": (
        "bitsandbytes int8",
        _set("weight_format", torch.tensor(2, dtype=BYTES)),
        "its weight_format is not 0, rows",
    ),
    "SCB of another length": ("bitsandbytes int8", _set("SCB", torch.ones(3)), r"SCB is F32 \[3\] and must hold 32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_layers_that_do_not_fit(case: str, tmp_path: Path) -> None:
    form, change, says = WRONG[case]
    state = layer_of(form)
    change(state)
    file = tmp_path / "w.safetensors"
    save_file(state, file)
    with pytest.raises(CheckpointError, match=rf"w\.safetensors [\s\S]*cannot be loaded:[\s\S]*{says}"):
        transformed(open_source([file]), ())


def test_all_layers_that_are_wrong_are_named(tmp_path: Path) -> None:
    state = {f"layers.{i}.weight": torch.zeros(2, 32, dtype=FLOAT8) for i in range(8)}
    save_file({**state, "scaled_fp8": torch.zeros(2, dtype=FLOAT8)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        transformed(open_source([tmp_path / "w.safetensors"]), ())
    assert str(caught.value).count("has no scale_weight") == 5
    assert "and 3 more\nFetch it again, or use a file of the same model in bfloat16" in str(caught.value)


def test_a_packed_weight_of_another_width_than_the_models(tmp_path: Path) -> None:
    """Both shapes are those of the numbers, not of the bytes."""
    name = "layers.1.attention.to_k.weight"
    state = state_of("transformer")
    state[name] = state[name][:, :128]
    write(FORMATS[NVFP4], state, tmp_path / "w.safetensors", where="layers.1.attention.to_k")
    with pytest.raises(CheckpointError, match=rf"of the wrong shape: {name} is \[256, 128\] and must be \[256, 256\]"):
        plan(names_of("transformer"), open_source([tmp_path / "w.safetensors"]))


CONFIGURED = {
    "compressed-tensors, packed": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "pack-quantized",
    ),
    "ModelOpt, int4": ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, 'quant_algo "W4A16_AWQ" is not supp'),
    "FBGEMM": ({"quant_method": "fbgemm_fp8"}, 'is quantized by "fbgemm_fp8", which is not supported'),
}


@pytest.mark.parametrize("case", CONFIGURED)
@pytest.mark.parametrize("where", ["config.json", "header"])
def test_configurations_that_are_not_supported(case: str, where: str, tmp_path: Path) -> None:
    config, says = CONFIGURED[case]
    header = {"quantization_config": json.dumps(config)} if where == "header" else None
    if where == "config.json":
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    save_file(layer_of("ModelOpt FP8"), tmp_path / "w.safetensors", header)
    with pytest.raises(CheckpointError, match=says):
        transformed(open_source([tmp_path / "w.safetensors"]), ())


def test_a_layer_without_a_scale_where_others_have_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    state = {**layer_of("fine-grained fp8"), "layers.1.weight": torch.zeros(2, 256, dtype=FLOAT8)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"layers\.1 has no scale, and others or the configuration say that it must"
    ):
        transformed(open_source([tmp_path / "w.safetensors"]), ())


OTHERS: dict[str, tuple[tuple[str, ...], str]] = {
    "nunchaku": (("layers.0.attention.qkv.qweight", "layers.0.attention.qkv.wscales"), "packed by nunchaku"),
    "SDNQ": (("layers.0.attention.to_q.svd_up", "layers.0.attention.to_q.scale"), "quantized by SDNQ"),
    "SDNQ without SVD": (("layers.0.attention.to_q.zero_point",), "quantized by SDNQ"),
    "torchao": (("layers.0.attention.to_q._weight_qdata",), "quantized by torchao"),
    "torchao, older": (("layers.0.attention.to_q.weight:qdata",), "quantized by torchao"),
    "GPTQ": (
        ("layers.0.attention.to_q.qweight", "layers.0.attention.to_q.qzeros"),
        "quantized by GPTQ, AWQ or the like",
    ),
    "DiffSynth": (("layers.0.attention.to_q.quantized_weight",), "quantized by DiffSynth-Studio or the like"),
    "compressed-tensors, packed": (("layers.0.attention.to_q.weight_packed",), "packed by compressed-tensors"),
    "Omni": (
        ("siglip_embedder.0.weight", "cap_embedder.1.weight"),
        "of Z-Image-Omni, another model under the same names",
    ),
    "pixel space": (("dec_net.res_blocks.0.mlp.weight", "cap_embedder.1.weight"), "of a Z-Image in pixel space"),
    "Lumina Image 2": (("cap_embedder.1.weight",), "Lumina Image 2, 2304 numbers wide where Z-Image is 3840"),
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("case", OTHERS)
def test_other_tools_and_other_models(case: str, prefix: str, tmp_path: Path) -> None:
    names, says = OTHERS[case]
    save_file({f"{prefix}{name}": torch.zeros(2304, 2) for name in names}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=rf"w\.safetensors is {says}.*; use |w\.safetensors is {says}"):
        plan(names_of("transformer"), open_source([tmp_path / "w.safetensors"]))


@pytest.mark.parametrize("method", ["sdnq", "torchao", "svdquant", "quanto"])
def test_methods_that_only_a_configuration_names(method: str, tmp_path: Path) -> None:
    config = {"quantization_config": json.dumps({"quant_method": method})}
    save_file({"layers.0.attention.qkv.weight": torch.zeros(4, 4, dtype=BYTES)}, tmp_path / "w.safetensors", config)
    with pytest.raises(CheckpointError, match=r"w\.safetensors is quantized by .*, which is not supported; use a file"):
        plan(names_of("transformer"), open_source([tmp_path / "w.safetensors"]))


def test_torchao_by_its_header(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "w.safetensors", {"tensor_names": '["a.weight"]'})
    with pytest.raises(CheckpointError, match="is quantized by torchao"):
        plan(names_of("transformer"), open_source([tmp_path / "w.safetensors"]))
