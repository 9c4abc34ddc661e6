"""Writers of quantized weights, one a format, each with what its numbers stand for by formulas of its own.

A writer takes matrices in float32 and makes of each the tensors that a file of the format holds. What they decode to is
computed here, number by number as the format's description says, and not by the loader's code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from tests.references.engine_weights import StateDict

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
E2M1_SIZES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# Quantiles of a normal distribution, from the QLoRA paper (appendix E).
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
FP4 = torch.tensor([0.0, 0.0052, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25])
FP4 = torch.cat([FP4, -FP4])

Matrix = tuple[StateDict, torch.Tensor]
"""The tensors of a layer, by what follows its name, and what they decode to in float32."""
Writer = Callable[[torch.Tensor], Matrix]


@dataclass(frozen=True)
class Format:
    """How a checkpoint is written.

    Attributes:
        write: One matrix.
        multiple: Of what its inputs must be.
        config: The `quantization_config` of config.json.
        markers: Tensors of the whole file.
        in_header: What the header says of each layer, in place of a `comfy_quant`.
        storage: What the loader calls it.
    """

    write: Writer
    storage: str
    multiple: int = 1
    config: Mapping[str, object] | None = None
    markers: StateDict = field(default_factory=dict)
    in_header: Mapping[str, object] | None = None


def write(form: Format, state: StateDict, file: Path, where: str = "") -> StateDict:
    """Write a file whose matrices are quantized where the format can; returns what all of it decodes to.

    Args:
        form: How.
        state: Numbers by name.
        file: Where to.
        where: What the names of quantized matrices hold; others stay as they are.
    """
    tensors, decoded = dict(form.markers), {}
    layers = {}
    for name, values in state.items():
        layer = name.removesuffix(".weight")
        if values.dim() != 2 or layer == name or values.shape[1] % form.multiple or where not in name:
            tensors[name] = decoded[name] = values
            continue
        made, decoded[name] = form.write(values.float())
        layers[layer] = form.in_header
        tensors |= {f"{layer}.{end}": tensor.contiguous() for end, tensor in made.items()}
    metadata = {"format": "pt"}
    if form.in_header is not None:
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file, metadata)
    if form.config is not None:
        (file.parent / "config.json").write_text(json.dumps({"quantization_config": form.config}))
    return decoded


def _described(**says: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(says).encode()), dtype=torch.uint8)


def _cast(dtype: torch.dtype) -> Writer:
    def write(values: torch.Tensor) -> Matrix:
        codes = values.to(dtype)
        return {"weight": codes}, codes.float()

    return write


def _scaled(suffix: str, dtype: torch.dtype = E4M3, *, rows: bool = False, **beside: torch.Tensor) -> Writer:
    def write(values: torch.Tensor) -> Matrix:
        largest = values.abs().amax(dim=1, keepdim=True) if rows else values.abs().max()
        scale = largest / torch.finfo(dtype).max
        codes = (values / scale).to(dtype)
        return {"weight": codes, suffix: scale, **beside}, codes.float() * scale

    return write


def _blocks(values: torch.Tensor) -> Matrix:
    """128 x 128 numbers a scale."""
    codes, decoded = torch.empty_like(values, dtype=E4M3), torch.empty_like(values)
    scales = torch.empty(-(-values.shape[0] // 128), -(-values.shape[1] // 128))
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            here = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
            scales[row, column] = values[here].abs().max() / 448
            codes[here] = (values[here] / scales[row, column]).to(E4M3)
            decoded[here] = codes[here].float() * scales[row, column]
    return {"weight": codes, "weight_scale_inv": scales}, decoded


def in_tiles(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Scales of blocks in tiles of 128 rows and 4 columns, place by place."""
    rows, columns = codes.shape
    whole = -(-rows // 128) * 128, -(-columns // 4) * 4
    placed = np.zeros(whole[0] * whole[1], np.uint8)
    for r in range(rows):
        for c in range(columns):
            tile = (r // 128) * (whole[1] // 4) + c // 4
            placed[tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4] = codes[r, c]
    return placed.reshape(whole)


def _mxfp8(values: torch.Tensor) -> Matrix:
    blocks = values.reshape(len(values), -1, 32)
    exponents = torch.ceil(torch.log2(blocks.abs().amax(dim=2) / 448)).clamp(-127, 127)
    powers = torch.exp2(exponents)[..., None]
    codes = (blocks / powers).to(E4M3)
    scales = torch.from_numpy(in_tiles((exponents + 127).to(torch.uint8).numpy()))
    made = {"weight": codes.reshape(values.shape), "weight_scale": scales, "comfy_quant": _described(format="mxfp8")}
    return made, (codes.float() * powers).reshape(values.shape)


def _nvfp4(*, swizzled: bool) -> Writer:
    def write(values: torch.Tensor) -> Matrix:
        blocks = values.reshape(len(values), -1, 16)
        scale = values.abs().max() / (6 * 448)
        scales = (blocks.abs().amax(dim=2) / 6 / scale).to(E4M3)
        whole = (scales.float() * scale)[..., None].clamp(min=1e-30)
        sizes = (blocks.abs() / whole)[..., None] - E2M1_SIZES
        codes = sizes.abs().argmin(dim=-1) + 8 * (blocks < 0)
        signed = torch.cat([E2M1_SIZES, -E2M1_SIZES])[codes] * scales.float()[..., None] * scale
        pairs = codes.reshape(len(values), -1, 2).to(torch.uint8)
        made: StateDict = {"weight_scale_2": scale, "input_scale": torch.tensor(0.5)}
        if swizzled:  # ComfyUI: the first number in the upper half
            made |= {"weight": 16 * pairs[..., 0] + pairs[..., 1], "comfy_quant": _described(format="nvfp4")}
            made["weight_scale"] = torch.from_numpy(in_tiles(scales.view(torch.uint8).numpy())).view(E4M3)
        else:  # ModelOpt: the first number in the lower half
            made |= {"weight": 16 * pairs[..., 1] + pairs[..., 0], "weight_scale": scales}
        return made, signed.reshape(values.shape)

    return write


def hadamard(group: int) -> npt.NDArray[np.int64]:
    """A Kronecker power of four rows, without its divisor."""
    four = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    made = four
    while len(made) < group:
        made = np.kron(made, four)
    return made


def _int8(*, group: int = 0, rows: bool = True) -> Writer:
    def write(values: torch.Tensor) -> Matrix:
        numbers = values.double().numpy()
        said: dict[str, object] = {"format": "int8_tensorwise"}
        if group:
            turned = hadamard(group) / group**0.5
            numbers = (numbers.reshape(len(numbers), -1, group) @ turned).reshape(numbers.shape)
            said |= {"convrot": True, "convrot_groupsize": group}
        largest = np.abs(numbers).max(axis=1, keepdims=True) if rows else np.abs(numbers).max()
        scale = np.float32(largest / 127)
        codes = np.rint(numbers / scale).astype(np.int8)
        back = codes.astype(np.int64)
        if group:
            back = (back.reshape(len(back), -1, group) @ hadamard(group)).reshape(back.shape)
        decoded = torch.from_numpy(np.float32(back / max(group, 1) ** 0.5 * scale.astype(np.float64)))
        made = {"weight": torch.from_numpy(codes), "weight_scale": torch.from_numpy(np.asarray(scale))}
        return made | {"comfy_quant": _described(**said)}, decoded

    return write


def _four_bit(kind: str, table: torch.Tensor, *, nested: bool) -> Writer:
    def write(values: torch.Tensor) -> Matrix:
        flat = values.reshape(-1)
        largest = torch.stack([block.abs().max() for block in flat.split(64)])
        state: dict[str, object] = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16"}
        state["shape"] = list(values.shape)
        end = f"weight.quant_state.bitsandbytes__{kind}"
        made: StateDict = {"weight.quant_map": table, "weight.absmax": largest}
        if nested:
            offset = largest.mean()
            map_ = torch.linspace(-1, 1, 256)
            scales = torch.stack([block.abs().max() for block in (largest - offset).split(256)])
            spread = scales.repeat_interleave(256)[: len(largest)]
            codes = ((largest - offset) / spread)[:, None].sub(map_).abs().argmin(dim=1)
            largest = map_[codes] * spread + offset
            state |= {"nested_blocksize": 256, "nested_offset": offset.item(), "nested_dtype": "float32"}
            made |= {
                "weight.absmax": codes.to(torch.uint8),
                "weight.nested_absmax": scales,
                "weight.nested_quant_map": map_,
            }
        spread = largest.repeat_interleave(64)[: len(flat)]
        codes = (flat / spread)[:, None].sub(table).abs().argmin(dim=1)
        made["weight"] = (16 * codes[0::2] + codes[1::2]).to(torch.uint8)[:, None]
        made[end] = _described(**state)
        return made, (table[codes] * spread).reshape(values.shape)

    return write


def _rows_of_127(values: torch.Tensor) -> Matrix:
    largest = values.abs().amax(dim=1)
    codes = (values / largest[:, None] * 127).round().to(torch.int8)
    made = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return made, codes.float() * largest[:, None] / 127


_FLOAT8 = {"format": "float8_e4m3fn"}
FORMATS: Mapping[str, Format] = {
    "fp8 e4m3": Format(_cast(E4M3), "F8_E4M3"),
    "fp8 e5m2": Format(_cast(E5M2), "F8_E5M2"),
    "ComfyUI scaled fp8, old": Format(
        _scaled("scale_weight", scale_input=torch.ones(())),
        "F8_E4M3 scaled",
        markers={"scaled_fp8": torch.zeros(2, dtype=E4M3)},
    ),
    "ComfyUI scaled fp8, old, e5m2": Format(
        _scaled("scale_weight", E5M2), "F8_E5M2 scaled", markers={"scaled_fp8": torch.zeros(0, dtype=E5M2)}
    ),
    "ComfyUI fp8": Format(
        _scaled("weight_scale", comfy_quant=_described(**_FLOAT8, full_precision_matrix_mult=True)), "F8_E4M3 scaled"
    ),
    "ComfyUI fp8 e5m2": Format(
        _scaled("weight_scale", E5M2, comfy_quant=_described(format="float8_e5m2")), "F8_E5M2 scaled"
    ),
    "ComfyUI fp8, header": Format(
        _scaled("weight_scale", input_scale=torch.ones(())), "F8_E4M3 scaled", in_header=_FLOAT8
    ),
    "ComfyUI mxfp8": Format(_mxfp8, "mxfp8", 32),
    "ComfyUI nvfp4": Format(_nvfp4(swizzled=True), "nvfp4", 16),
    "ComfyUI int8": Format(_int8(rows=False), "int8"),
    "ComfyUI int8, rows": Format(_int8(), "int8"),
    "ComfyUI int8, rotated": Format(_int8(group=256), "int8 convrot", 256),
    "ComfyUI int8, rotated by 64": Format(_int8(group=64), "int8 convrot", 64),
    "fine-grained fp8": Format(
        _blocks, "F8_E4M3 blocks", config={"quant_method": "fp8", "weight_block_size": [128, 128]}
    ),
    "compressed-tensors fp8": Format(
        _scaled("weight_scale", rows=True),
        "F8_E4M3 scaled",
        config={"quant_method": "compressed-tensors", "format": "float-quantized"},
    ),
    "ModelOpt FP8": Format(
        _scaled("weight_scale", input_scale=torch.tensor(0.1)),
        "F8_E4M3 scaled",
        config={"quant_method": "modelopt", "quant_algo": "FP8"},
    ),
    "ModelOpt NVFP4": Format(
        _nvfp4(swizzled=False), "nvfp4", 16, config={"quant_method": "modelopt", "quant_algo": "NVFP4"}
    ),
    "bitsandbytes nf4": Format(_four_bit("nf4", NF4, nested=False), "nf4", 2),
    "bitsandbytes nf4, nested": Format(_four_bit("nf4", NF4, nested=True), "nf4", 2),
    "bitsandbytes fp4": Format(_four_bit("fp4", FP4, nested=False), "fp4", 2),
    "bitsandbytes int8": Format(_rows_of_127, "int8 of bitsandbytes"),
}
"""Every format of safetensors that is loaded, with the name that the page of files has for it."""
