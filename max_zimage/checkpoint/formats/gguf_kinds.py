"""GGUF files that hold something else than a part of a Z-Image pipeline, told by their metadata and names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from max_zimage.errors import CheckpointError

_OTHER_IMAGE_MODELS = frozenset(
    {"aura", "chroma", "cosmos", "flux", "hidream", "hyvid", "ltxv", "qwen_image", "sd1", "sd3", "sdxl", "wan"}
)
_LANGUAGE_MODEL = re.compile(r"token_embd\.|blk\.\d+\.")
_ENCODER = "qwen3"
LORA = "a LoRA in GGUF, which is not supported; use it as safetensors"
"""What such a file is, behind its name."""


def check_kind(file: Path, metadata: Mapping[str, object], names: Sequence[str]) -> None:
    """Refuse what is of no use here.

    Args:
        file: For the message.
        metadata: Of its header.
        names: Of its tensors.

    Raises:
        CheckpointError: If it is one of several parts, a LoRA, a vision tower, or another model by its own word. Files
            whose header names no architecture, or one that others use for Z-Image, are judged by their tensors.
    """
    what = _refused(metadata, names)
    if what is not None:
        raise CheckpointError(f"{file} is {what}")


def _refused(metadata: Mapping[str, object], names: Sequence[str]) -> str | None:
    kind, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    parts = metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        return (
            f"one of the {parts} parts of a GGUF model; put them together first with "
            "`llama-gguf-split --merge FIRST_PART WHOLE`"
        )
    if kind == "adapter" or any(name.endswith((".lora_a", ".lora_b")) for name in names):
        return LORA
    if kind == "mmproj" or architecture == "clip" or any(name.startswith(("v.blk.", "mm.")) for name in names):
        return (
            "an mmproj file, the part of a language model that sees pictures, which Z-Image has no use for; give the "
            "language model's own file, Qwen3-4B"
        )
    if architecture in _OTHER_IMAGE_MODELS:
        return f"of another model, its architecture is {architecture!r}; only Z-Image's transformer is supported"
    if any(_LANGUAGE_MODEL.match(name) for name in names) and architecture not in (_ENCODER, None):
        return (
            f"a language model of architecture {architecture!r}; Z-Image's text encoder is Qwen3-4B, of architecture "
            f"{_ENCODER!r}"
        )
    return None
