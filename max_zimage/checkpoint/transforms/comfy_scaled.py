"""ComfyUI's first form of scaled float8: `scale_weight` beside a weight, and one tensor `scaled_fp8` in a file.

Reference: ComfyUI comfy/utils.py, convert_old_quants.
"""

from __future__ import annotations

from max_zimage.checkpoint.tensors import Source
from max_zimage.checkpoint.transforms.layers import Layers
from max_zimage.checkpoint.transforms.scaled import scaled

FLOAT8 = ("F8_E4M3", "F8_E5M2")
_MARKER = "scaled_fp8"


def comfy_scaled(source: Source) -> Source:
    """Multiply weights by their `scale_weight`; the scales of inputs concern float8 products alone, and are left out.

    Raises:
        CheckpointError: If the file says that it is scaled and a float8 matrix has no scale, if a weight that has one
            is no float8, or a scale is no positive number.
    """
    found = Layers(source)
    markers = [name for name in found.tensors if name == _MARKER or name.endswith(f".{_MARKER}")]
    for layer in found.ending("scale_weight"):
        weight, scale = found.weight(layer, FLOAT8), found.scale(layer, "scale_weight")
        if weight is not None and scale is not None:
            found.put(scaled(weight, scale, f"{weight.dtype} scaled"))
        found.take(f"{layer}.scale_input")
    for marker in markers:
        found.take(marker)
        for name, tensor in found.tensors.items():
            here = name.startswith(marker.removesuffix(_MARKER)) and name.endswith(".weight")
            if here and tensor.storage in FLOAT8 and len(tensor.shape) == 2:
                found.problems.append(f"{name.removesuffix('.weight')} has no scale_weight, and {marker} says it must")
    return found.done("scaled float8 of ComfyUI")
