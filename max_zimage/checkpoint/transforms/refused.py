"""Files that are refused by name, for they would load as something they are not, or for want of a decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping

from max_zimage.checkpoint.tensors import Source
from max_zimage.checkpoint.transforms.layers import INSTEAD, quantization_config
from max_zimage.errors import CheckpointError

_OTHER_MODEL = "another model under the same names; use Z-Image or Z-Image-Turbo"

_NAMES: tuple[tuple[str, str], ...] = (
    (
        r"siglip_embedder\.|siglip_refiner\.",
        f"of Z-Image-Omni, {_OTHER_MODEL}",
    ),
    (r"dec_net\.", f"of a Z-Image in pixel space, {_OTHER_MODEL}"),
    (
        r"wscales$|smooth_factor(_orig)?$|proj_down$",
        f"packed by nunchaku (SVDQuant) for one kind of GPU; use {INSTEAD}",
    ),
    (r"svd_up$|svd_down$|zero_point$", f"quantized by SDNQ or the like, which is not supported; use {INSTEAD}"),
    (r"_weight_qdata$|weight:qdata$|weight\.qdata$", f"quantized by torchao, which is not supported; use {INSTEAD}"),
    (r"qzeros$|qweight$", f"quantized by GPTQ, AWQ or the like, which is not supported; use {INSTEAD}"),
    (
        r"(quantized_weight|weight_int8|weight_int4|int_data)$",
        f"quantized by DiffSynth-Studio or the like, in names of its own; use {INSTEAD}",
    ),
    (r"weight_packed$", f"packed by compressed-tensors, of which only float8 is supported; use {INSTEAD}"),
)
"""Where a name of one of the file's tensors ends or begins -> what the file is."""

_METHODS: Mapping[str, str] = {
    "sdnq": "SDNQ",
    "torchao": "torchao",
    "svdquant": "nunchaku (SVDQuant)",
    "nunchaku": "nunchaku (SVDQuant)",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "quanto": "Quanto",
}
_CODED = frozenset({"U8", "I8", "I32", "U32", "I16"})
_LUMINA_WIDTH = 2304


def refused(source: Source) -> Source:
    """Let through what is not refused.

    Raises:
        CheckpointError: With what the file is, and what to use instead.
    """
    what = _what(source)
    if what is not None:
        raise CheckpointError(f"{source.files[0]} is {what}")
    return source


def _what(source: Source) -> str | None:
    for pattern, what in _NAMES:
        if any(re.search(rf"(^|\.){pattern}", name) for name in source.tensors):
            return what
    for name, tensor in source.tensors.items():
        if name.endswith("cap_embedder.1.weight") and tensor.shape[:1] == (_LUMINA_WIDTH,):
            return f"Lumina Image 2, {_LUMINA_WIDTH} numbers wide where Z-Image is 3840: {_OTHER_MODEL}"
    if any("tensor_names" in metadata for metadata in source.metadata.values()):
        return f"quantized by torchao, which is not supported; use {INSTEAD}"
    coded = any(tensor.dtype in _CODED for tensor in source.tensors.values())
    method = quantization_config(source).get("quant_method") if coded else None
    if isinstance(method, str) and method.lower() in _METHODS:
        return f"quantized by {_METHODS[method.lower()]}, which is not supported; use {INSTEAD}"
    return None


def leftover(source: Source) -> Source:
    """Refuse codes that nothing has decoded.

    Raises:
        CheckpointError: With the first few of them.
    """
    explained = [text for name, tensor in source.tensors.items() for text in _explained(name, tensor.dtype)]
    if explained:
        more = f" and {len(explained) - 3} more" if len(explained) > 3 else ""
        raise CheckpointError(f"{source.files[0]} cannot be loaded: {'; '.join(explained[:3])}{more}; use {INSTEAD}")
    return source


def _explained(name: str, dtype: str) -> list[str]:
    if name.endswith(".weight") and dtype == "U8":
        return [f"{name} is packed 4-bit of unknown format, for it has neither comfy_quant nor quant_state"]
    if name.endswith(".weight") and dtype == "I8":
        return [f"{name} is int8 of unknown format, for it has neither comfy_quant nor SCB"]
    return []
