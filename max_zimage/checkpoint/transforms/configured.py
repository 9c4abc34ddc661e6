"""Weights with scales that only `quantization_config` explains: fine-grained float8, compressed-tensors, ModelOpt.

Names alone do not tell: `weight_scale` stands beside float8 of one scale, beside blocks in tiles and beside blocks row
by row. The configuration is that of a file's header, or of the config.json beside it.

References: transformers integrations/finegrained_fp8.py; vllm-project/compressed-tensors;
NVIDIA/TensorRT-Model-Optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from max_zimage.checkpoint.tensors import Source, StoredTensor
from max_zimage.checkpoint.transforms.layers import Layers, quantization_config
from max_zimage.checkpoint.transforms.microscaled import NVFP4_BLOCK, Nvfp4
from max_zimage.checkpoint.transforms.scaled import BlockScaled, scaled
from max_zimage.strict_json import shown

_FLOAT8 = "F8_E4M3"


def configured(source: Source) -> Source:
    """Decode weights as the configuration says.

    Raises:
        CheckpointError: If a scale is there and nothing says what it means, if one is missing, or if the configuration
            names a method or a format that is not supported.
    """
    found = Layers(source)
    blocks, others = found.ending("weight_scale_inv"), found.ending("weight_scale")
    plain_float8 = [name for name, tensor in found.tensors.items() if _is_float8_matrix(name, tensor)]
    if not blocks and not others and not plain_float8:
        return source
    config = quantization_config(source)
    for layer in blocks:
        _blocks(found, layer, config)
    method = config.get("quant_method")
    for layer in others:
        if isinstance(method, str) and method in _METHODS:
            _METHODS[method](found, layer, config)
        elif method is None:
            found.problems.append(
                f"{layer} has a weight_scale, and neither a comfy_quant beside it nor a quantization_config in the "
                "header or in config.json says what it means; take both from where the file comes from"
            )
        else:
            found.problems.append(f"{layer} is quantized by {shown(method)}, which is not supported")
        found.take(f"{layer}.input_scale")
    if blocks or method in _METHODS or method == "fp8":
        found.problems += [
            f"{name.removesuffix('.weight')} has no scale, and others or the configuration say that it must"
            for name in plain_float8
            if name in found.tensors and found.tensors[name].storage == _FLOAT8
        ]
    return found.done(f"quantized by {method}" if method else "float8 with scales")


def _is_float8_matrix(name: str, tensor: object) -> bool:
    return (
        isinstance(tensor, StoredTensor)
        and name.endswith(".weight")
        and tensor.dtype == _FLOAT8
        and len(tensor.shape) == 2
    )


def _blocks(found: Layers, layer: str, config: Mapping[str, object]) -> None:
    """Float8 in blocks; what is called the inverse of a scale is multiplied by."""
    weight = found.weight(layer, [_FLOAT8])
    block = config.get("weight_block_size") or [128, 128]
    found.take(f"{layer}.input_scale")
    match block:
        case [int(height), int(width)] if height > 0 and width > 0:
            pass
        case _:
            found.problems.append(f"weight_block_size must be two whole numbers above 0, got {shown(block)}")
            return
    shape = (1, 1) if weight is None else (-(-weight.shape[0] // height), -(-weight.shape[1] // width))
    scale = found.scale(layer, "weight_scale_inv", [shape])
    if weight is None or scale is None:
        return
    if scale.shape != shape:
        found.problems.append(f"{scale.name} is {list(scale.shape)} and must be {list(shape)}")
        return
    told = weight.file, weight.name, "F32", weight.shape, f"{_FLOAT8} blocks"
    found.put(BlockScaled(*told, weight, scale, (height, width)))


def _compressed(found: Layers, layer: str, config: Mapping[str, object]) -> None:
    form = config.get("format", "float-quantized")
    if form not in ("float-quantized", "naive-quantized"):
        found.problems.append(f"{layer}: compressed-tensors in the format {shown(form)} is not supported")
        found.take(f"{layer}.weight_scale")
        return
    _one_scale(found, layer)


def _modelopt(found: Layers, layer: str, config: Mapping[str, object]) -> None:
    weight, algorithm = found.tensors.get(f"{layer}.weight"), config.get("quant_algo")
    if algorithm not in ("FP8", "NVFP4", "MIXED_PRECISION"):
        found.problems.append(f"{layer}: ModelOpt's quant_algo {shown(algorithm)} is not supported")
        found.take(f"{layer}.weight_scale")
    elif algorithm == "FP8" or (weight is not None and weight.dtype == _FLOAT8):
        _one_scale(found, layer)
    else:
        _row_major_nvfp4(found, layer)
    if f"{layer}.pre_quant_scale" in found.tensors:
        found.problems.append(f"{layer} has a pre_quant_scale, which is not supported")


def _one_scale(found: Layers, layer: str) -> None:
    weight = found.weight(layer, [_FLOAT8])
    rows = [] if weight is None else [(weight.shape[0],), (weight.shape[0], 1)]
    scale = found.scale(layer, "weight_scale", rows)
    if weight is not None and scale is not None:
        found.put(scaled(weight, scale, f"{_FLOAT8} scaled"))


def _row_major_nvfp4(found: Layers, layer: str) -> None:
    packed = found.weight(layer, ["U8"])
    scale = found.scale(layer, "weight_scale_2")
    if packed is None:
        found.take(f"{layer}.weight_scale")
        return
    out, width = packed.shape[0], 2 * packed.shape[1]
    if width % NVFP4_BLOCK:
        found.problems.append(f"{layer} has {width} inputs; they must be whole groups of {NVFP4_BLOCK}")
        return
    scales = found.coded(layer, "weight_scale", (_FLOAT8,), out * width // NVFP4_BLOCK)
    if scales is None or scale is None:
        return
    if scales.shape != (out, width // NVFP4_BLOCK):
        found.problems.append(f"{scales.name} is {list(scales.shape)} and must be {[out, width // NVFP4_BLOCK]}")
        return
    told = packed.file, packed.name, "F32", (out, width), "nvfp4"
    found.put(Nvfp4(*told, packed, scales, scale, swizzled=False, high_first=False))


_METHODS: Mapping[str, Callable[[Layers, str, Mapping[str, object]], None]] = {
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
}
