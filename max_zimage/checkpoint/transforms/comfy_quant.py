"""ComfyUI's mixed quantization: every layer says in `comfy_quant`, or the header for all of them, what its weight is.

References: ComfyUI comfy/quant_ops.py and QUANTIZATION.md; Comfy-Org/comfy-kitchen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from max_zimage.checkpoint.tensors import Source
from max_zimage.checkpoint.transforms.layers import Layers
from max_zimage.checkpoint.transforms.microscaled import MXFP8_BLOCK, NVFP4_BLOCK, Mxfp8, Nvfp4, in_tiles, padded
from max_zimage.checkpoint.transforms.rotated import GROUPS, Rotated
from max_zimage.checkpoint.transforms.scaled import scaled
from max_zimage.strict_json import parse_object, plain, shown

Description = Mapping[str, object]

_HEADER = "_quantization_metadata"
_KEYS = frozenset(
    {
        "format",
        "convrot",
        "convrot_groupsize",
        "full_precision_matrix_mult",  # about the product that ComfyUI makes
        "group_size",
        "orig_dtype",
        "orig_shape",
        "per_row",  # the scale's shape says it too
    }
)


def comfy_quant(source: Source) -> Source:
    """Decode the weights of layers that are described.

    Raises:
        CheckpointError: If a description cannot be read or is of a format that is not supported, or a layer's tensors
            are not those of its format.
    """
    found = Layers(source)
    described: dict[str, Description] = {}
    for layer in found.ending("comfy_quant"):
        text = found.described(f"{layer}.comfy_quant")
        if text:
            described[layer] = text
    for layer, text in _of_headers(found).items():
        if f"{layer}.weight" in found.tensors:
            described.setdefault(layer, text)
    for layer, text in described.items():
        _decode(found, layer, text)
    return found.done("quantized for ComfyUI")


def _of_headers(found: Layers) -> dict[str, Description]:
    layers: dict[str, Description] = {}
    for file, metadata in found.source.metadata.items():
        if isinstance(text := metadata.get(_HEADER), str):
            listed = parse_object(file, text).get("layers")
            entries = listed.items() if isinstance(listed, dict) else ()
            layers |= {name: entry for name, entry in entries if isinstance(entry, dict)}
    return layers


def _decode(found: Layers, layer: str, text: Description) -> None:
    form = text.get("format")
    if unknown := sorted(text.keys() - _KEYS):
        names = ", ".join(map(plain, unknown))
        found.problems.append(f"{layer}.comfy_quant says {names}, which is not known and may change the numbers")
    if isinstance(form, str) and form in _DECODERS:
        _DECODERS[form](found, layer, text)
        found.take(f"{layer}.input_scale")
        if f"{layer}.pre_quant_scale" in found.tensors:
            found.problems.append(f"{layer} has a pre_quant_scale, which is not supported")
        made, original = found.tensors.get(f"{layer}.weight"), text.get("orig_shape")
        if made is not None and original is not None and original != list(made.shape):
            found.problems.append(f"{layer}.weight is {list(made.shape)} and was {shown(original)}: it is padded")
    else:
        found.problems.append(f"{layer} is in the format {shown(form)}, which is not supported")


def _float8(dtype: str) -> Callable[[Layers, str, Description], None]:
    def decode(found: Layers, layer: str, text: Description) -> None:
        weight = found.weight(layer, [dtype])
        scale = found.scale(layer, "weight_scale", [] if weight is None else _of_rows(weight.shape))
        if weight is not None and scale is not None:
            found.put(scaled(weight, scale, f"{dtype} scaled"))

    return decode


def _mxfp8(found: Layers, layer: str, text: Description) -> None:
    weight = found.weight(layer, ["F8_E4M3"])
    if weight is None or not _divides(found, layer, text, MXFP8_BLOCK, weight.shape[1]):
        return
    out, blocks = weight.shape[0], weight.shape[1] // MXFP8_BLOCK
    rows, columns = padded(out, blocks)
    scales = found.coded(layer, "weight_scale", ("U8", "F8_E8M0"), rows * columns)
    if scales is not None:
        tiles = in_tiles(scales, out, blocks)
        found.put(Mxfp8(weight.file, weight.name, "F32", weight.shape, "mxfp8", weight, tiles))


def _nvfp4(found: Layers, layer: str, text: Description) -> None:
    packed = found.weight(layer, ["U8"])
    if packed is None or not _divides(found, layer, text, NVFP4_BLOCK, 2 * packed.shape[1]):
        return
    out, width = packed.shape[0], 2 * packed.shape[1]
    rows, columns = padded(out, width // NVFP4_BLOCK)
    scales = found.coded(layer, "weight_scale", ("F8_E4M3",), rows * columns)
    scale = found.scale(layer, "weight_scale_2")
    if scales is not None and scale is not None:
        tiles = in_tiles(scales, out, width // NVFP4_BLOCK)
        told = packed.file, packed.name, "F32", (out, width), "nvfp4"
        found.put(Nvfp4(*told, packed, tiles, scale, swizzled=True, high_first=True))


def _int8(found: Layers, layer: str, text: Description) -> None:
    weight = found.weight(layer, ["I8"])
    scale = found.scale(layer, "weight_scale", [] if weight is None else _of_rows(weight.shape))
    if weight is None or scale is None:
        return
    if not text.get("convrot"):
        found.put(scaled(weight, scale, "int8"))
        return
    group = text.get("convrot_groupsize", 256)
    if not isinstance(group, int) or group not in GROUPS or weight.shape[1] % group:
        found.problems.append(
            f"{layer} is rotated in groups of {shown(group)}; its {weight.shape[1]} inputs must be whole groups of "
            f"{', '.join(map(str, GROUPS))}"
        )
        return
    told = weight.file, weight.name, "F32", weight.shape, "int8 convrot"
    found.put(Rotated(*told, weight, scale, group))


def _of_rows(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [(shape[0],), (shape[0], 1)]


def _divides(found: Layers, layer: str, text: Description, block: int, width: int) -> bool:
    if text.get("group_size", block) != block or width % block:
        found.problems.append(
            f"{layer} has {width} inputs in groups of {shown(text.get('group_size', block))}; they must be whole "
            f"groups of {block}"
        )
        return False
    return True


_DECODERS: Mapping[str, Callable[[Layers, str, Description], None]] = {
    "float8_e4m3fn": _float8("F8_E4M3"),
    "float8_e5m2": _float8("F8_E5M2"),
    "mxfp8": _mxfp8,
    "nvfp4": _nvfp4,
    "int8_tensorwise": _int8,
}
