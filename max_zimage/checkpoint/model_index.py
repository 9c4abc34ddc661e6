"""What `model_index.json` says: which pipeline a checkpoint is, and the class of each of its parts.

diffusers makes the parts from these classes, whatever the parts' own files say. A class that is not the one implemented
here would draw other pictures, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from max_zimage.errors import CheckpointError
from max_zimage.strict_json import plain, read_object, shown

INDEX = "model_index.json"

PIPELINE_CLASSES = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")
"""Pipelines of diffusers that hold the same parts; what is drawn with them is up to the request."""

GENERATION_DEFAULTS = "_generation_defaults"

_PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "scheduler": ("diffusers", ("FlowMatchEulerDiscreteScheduler",)),
    "text_encoder": ("transformers", ("Qwen3Model", "Qwen3ForCausalLM")),
    # All of them read tokenizer.json, under the names that transformers has given them.
    "tokenizer": (
        "transformers",
        ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "AutoTokenizer"),
    ),
    "transformer": ("diffusers", ("ZImageTransformer2DModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
}
PARTS = tuple(_PARTS)


def read_index(directory: Path) -> dict[str, object]:
    """Read a checkpoint's `model_index.json`.

    Args:
        directory: The checkpoint.

    Returns:
        Its contents.

    Raises:
        CheckpointError: If it is not that of a Z-Image pipeline whose parts are implemented.
    """
    file = directory / INDEX
    index = read_object(file)
    if index.get("_class_name") not in PIPELINE_CLASSES:
        given = f"is {shown(index['_class_name'])}" if "_class_name" in index else "is missing"
        raise CheckpointError(
            f"{file} is of no model that is supported: _class_name {given} and must be one of "
            f"{', '.join(PIPELINE_CLASSES)}; give another model"
        )
    problems = [problem for part in PARTS if (problem := _problem(part, index.get(part)))]
    problems += [
        f"names a part {plain(key)}, {shown(value)}, which is not implemented; to draw without it take the entry out"
        for key, value in index.items()
        if key not in PARTS and isinstance(value, list) and any(value)
    ]
    if problems:
        raise CheckpointError("\n".join(f"{file} {problem}" for problem in problems))
    return index


def _problem(part: str, given: object) -> str | None:
    library, classes = _PARTS[part]
    if any(given == [library, name] for name in classes):
        return None
    allowed = " or ".join(f'["{library}", "{name}"]' for name in classes)
    if given is None or given == [None, None]:
        return f"names no {part}; it must name {allowed}"
    return f"names as {part} {shown(given)}; implemented is {allowed}"
