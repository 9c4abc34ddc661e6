"""What the pictures of a server say of the model that drew them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from max.pipelines.lib.config import MAXModelConfig

from max_zimage.checkpoint.locate import COMPONENTS
from max_zimage.errors import RequestError
from max_zimage.pipeline import attention, storages
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.request import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class DrawnBy:
    """A model as `max_zimage.request.metadata.GenerationParameters` has it.

    Attributes:
        model: Folder, hub id or the embedded model's name.
        dtype: Of weights and computation.
        device: "cpu" or "gpu".
        quantize: Which components keep quantized weights, and how.
        attention_backend: How attention is computed, where that was chosen.
        weight_paths: Weight files in place of the model's own, as they were named.
    """

    model: str
    dtype: str
    device: str
    quantize: str
    attention_backend: str = ""
    weight_paths: tuple[str, ...] = ()


def written_parameters(asked: GenerationRequest, source: DrawnBy | None) -> list[str]:
    """The JSON that each picture of a request carries; none where the model cannot be named, or a prompt is unknown.

    Args:
        asked: The request.
        source: The model.
    """
    if source is None or not asked.is_repeatable:
        return []
    return [
        GenerationParameters.of(asked, **asdict(source), picture=picture).to_json()
        for picture in range(asked.num_images)
    ]


def asked_metadata(given: Mapping[str, str] | None) -> bool | None:
    """Whether a request of `/v1/responses` wants its pictures to carry what they were drawn with; None if it is silent.

    Args:
        given: Its metadata, in which MAX's schema lets it say so.

    Raises:
        RequestError: If that is neither true nor false.
    """
    text = (given or {}).get("metadata")
    if text not in (None, "true", "false"):
        raise RequestError.of("metadata", '{field}.metadata must be "true" or "false", got {given!r}', given=text)
    return None if text is None else text == "true"


def source_of(model: str, components: Mapping[str, MAXModelConfig]) -> DrawnBy | None:
    """How pictures of `max serve` name their model: None where its flags compose one that has no name.

    Args:
        model: The folder or hub id that MAX was given.
        components: MAX's configuration, one entry a component.
    """
    parts = [components[name] for name in COMPONENTS]
    dtypes = {part.quantization_encoding for part in parts}
    own = all(part.model_path == model and part.subfolder == name for name, part in zip(COMPONENTS, parts, strict=True))
    # Only the newest revision has a name that `max-zimage generate` can look up.
    newest = all(part.huggingface_model_revision == "main" for part in parts)
    if not own or not newest or len(dtypes) != 1 or any(part.weight_path for part in parts):
        return None
    device = "cpu" if parts[0].device_specs[0].device_type == "cpu" else "gpu"
    dtype = dtypes.pop() or ("float32" if device == "cpu" else "bfloat16")
    return DrawnBy(
        model=model,
        dtype=dtype,
        device=device,
        quantize=os.environ.get(storages.VARIABLE, ""),
        attention_backend=attention.named_attention(os.environ.get(attention.VARIABLE, "")),
    )
