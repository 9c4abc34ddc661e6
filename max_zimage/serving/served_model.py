"""The model of a server as its HTTP side knows it: its name, its tokenizer, and what its pictures say of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from max_zimage import embedded
from max_zimage.device.devices import device_kind
from max_zimage.pipeline.load_components import DEFAULT_STEPS
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.request.limits import DEFAULT_MAX_SEQUENCE_LENGTH
from max_zimage.serving.context_tokenizer import ZImageTokenizer
from max_zimage.serving.drawn_by import DrawnBy
from max_zimage.serving.http.requests import ServedModel
from max_zimage.serving.settings import ServerSettings


def served_model(settings: ServerSettings, prepared: CheckedModel) -> ServedModel:
    """Describe a checked model.

    Args:
        settings: Of the server.
        prepared: The checkpoint.
    """
    tokenizer = ZImageTokenizer(
        str(prepared.directory),
        prepared.config,
        "tokenizer",
        max_length=DEFAULT_MAX_SEQUENCE_LENGTH,
        default_num_inference_steps=DEFAULT_STEPS,
        groups=prepared.sources.limits.groups,
    )
    tokenizer.max_input_pixels = settings.limits.input_pixels
    # MAX's flags do not say all of a step cache, nor the configurations what the files hold.
    tokenizer.defaults = prepared.sources.defaults
    found = prepared.sources.limits
    tokens = min(settings.limits.prompt_tokens or found.max_tokens, found.max_tokens)
    folder = None if settings.lora_folder is None else Path(settings.lora_folder)
    tokenizer.limits = replace(found, max_tokens=tokens).with_lora_folder(folder)
    return ServedModel(
        name=settings.name,
        drawn_by=DrawnBy(
            model=settings.model or embedded.NAME,
            dtype=prepared.sources.dtypes["transformer"],
            device=device_kind(prepared.devices[0]),
            quantize=prepared.sources.quantize,
            attention_backend=prepared.sources.attention_backend,
            weight_paths=settings.weight_paths,
        ),
        tokenizer=tokenizer,
        limits=settings.limits,
        metadata=settings.metadata,
    )
