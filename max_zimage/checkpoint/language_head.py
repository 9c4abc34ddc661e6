"""What a text encoder's files hold beyond it: the last layer, the norm and the head of the language model that it is.

Reference: transformers models/qwen3/modeling_qwen3.py, Qwen3ForCausalLM; llama.cpp's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from max_zimage.checkpoint.expand import text_encoder_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.plan import EMBEDDING, LoadPlan, ParameterRecipe, plan
from max_zimage.checkpoint.tensors import Source, StoredTensor
from max_zimage.checkpoint.tied import HEAD, HEADS, check_equal
from max_zimage.checkpoint.transforms import transformed
from max_zimage.errors import CheckpointError
from max_zimage.graphs.model.text_encoder import TextEncoderSpec

_TIED = "tie_word_embeddings of its config.json is true; set it to false for a head of its own"


@dataclass(frozen=True, kw_only=True)
class LanguageModelPlan:
    """What is loaded of a language model.

    Attributes:
        body: All layers and the norm.
        head: The one table behind them.
        is_tied: Whether that is the embedding.
    """

    body: LoadPlan
    head: LoadPlan
    is_tied: bool


def language_model_plan(encoder: LoadPlan, spec: TextEncoderSpec, config: Mapping[str, object]) -> LanguageModelPlan:
    """Check that the files of a text encoder hold a whole language model; headers are read, and a head that is a copy.

    Args:
        encoder: What is loaded of them for features.
        spec: Its shape.
        config: Its configuration: whether the head is the embedding.

    Raises:
        CheckpointError: With what is missing, or if a head that config.json says is tied has numbers of its own.
    """
    source = open_source(encoder.files)
    try:
        body = plan(text_encoder_names(spec, spec.num_layers, final_norm=True), source)
    except CheckpointError as error:
        raise CheckpointError(f"the text encoder's files hold no whole language model: {error}") from error
    is_tied = config.get("tie_word_embeddings") is True
    head = _tied(body, source) if is_tied else _own(source, spec)
    shape = (spec.vocab_size, spec.hidden_size)
    if head.shape != shape:
        raise CheckpointError(f"the language model's head {HEAD} must be {list(shape)}, got {list(head.shape)}")
    return LanguageModelPlan(
        body=replace(body, kept_as=encoder.kept_as),
        head=LoadPlan("text_encoder", body.format, encoder.files, (head,), {}),
        is_tied=is_tied,
    )


def _tied(body: LoadPlan, source: Source) -> ParameterRecipe:
    """The embedding in the head's place.

    Raises:
        CheckpointError: If the files hold a head of other numbers. Quantized ones are not compared: a head and an
            embedding of the same numbers are rounded in different ways.
    """
    (embedding,) = [each for each in body.recipes if each.engine == EMBEDDING]
    (kept,) = embedding.parts
    for copy in (source.tensors[name] for name in HEADS if name in source.tensors):
        if isinstance(copy, StoredTensor) and isinstance(kept, StoredTensor) and copy.dtype == kept.dtype:
            check_equal(copy, kept, _TIED)
    return replace(embedding, engine=HEAD)


def _own(source: Source, spec: TextEncoderSpec) -> ParameterRecipe:
    found = [name for name in HEADS if name in source.tensors]
    if not found:
        raise CheckpointError(
            f"the text encoder's files hold no whole language model: {HEAD} is missing, and tie_word_embeddings of its "
            "config.json does not say that the embedding stands in for it"
        )
    (tensor,) = transformed(replace(source, tensors={found[0]: source.tensors[found[0]]}), ()).tensors.values()
    return ParameterRecipe(HEAD, (tensor,), "same", tensor.shape)
