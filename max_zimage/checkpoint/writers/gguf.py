"""GGUF files, written: metadata and the places of tensors, by the gguf library; the tensors follow piece by piece.

Reference: the GGUF format (ggml-org/ggml, docs/gguf.md), version 3; its keys as llama.cpp names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from max_zimage.checkpoint.writers.items import Item
from max_zimage.graphs.model.text_encoder import TextEncoderSpec

if TYPE_CHECKING:
    from gguf import GGUFWriter

ALIGNMENT = 32
"""Tensors begin at multiples of it, and the last one ends at one."""

TRANSFORMER = "lumina2"
TEXT_ENCODER = "qwen3"
_FILE_TYPES: Mapping[str, int] = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}


def begin(
    path: Path, items: Sequence[Item], metadata: Mapping[str, str], text_encoder: TextEncoderSpec | None = None
) -> None:
    """Write everything that stands before the tensors.

    Args:
        path: The file, which is made.
        items: In order.
        metadata: Of the whole file, as texts.
        text_encoder: Shape of a text encoder; None for a transformer.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, TRANSFORMER if text_encoder is None else TEXT_ENCODER)
    writer.add_type("model")
    writer.add_quantization_version(2)
    # What most of the bytes are, as in llama.cpp's own files.
    words = {item.word for item in items}
    writer.add_file_type(_FILE_TYPES[max(words, key=lambda word: _nbytes(items, word))])
    for key, text in metadata.items():
        writer.add_string(key, text)
    if text_encoder is not None:
        _describe(writer, text_encoder)
    for item in items:
        writer.add_tensor_info(
            item.name, item.shape, np.dtype(np.float32), item.nbytes, raw_dtype=GGMLQuantizationType[item.word]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _describe(writer: GGUFWriter, spec: TextEncoderSpec) -> None:
    """What a reader of language models looks for; the tokenizer is not among it."""
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(spec.rope_theta)


def _nbytes(items: Sequence[Item], word: str) -> int:
    return sum(item.nbytes for item in items if item.word == word)
