"""Tensors that files hold twice, for a model uses one in two places: what copies are called, whether they are copies.

References: transformers modeling_utils.py, _tied_weights_keys; models/qwen3/modeling_qwen3.py; llama.cpp's names.
"""

from __future__ import annotations

import numpy as np

from max_zimage.checkpoint.tensors import Files, Tensor
from max_zimage.errors import CheckpointError

HEAD = "lm_head.weight"
"""A language model's head, [words, width], which may be the embedding of its words."""
HEADS = (HEAD, "output.weight", "text_encoders.qwen3_4b.transformer.lm_head.weight", "text_encoders.lm_head.weight")
"""All its names: transformers', llama.cpp's, and those of all-in-one files."""
_NUMBERS_AT_A_TIME = 1 << 24


def check_equal(copy: Tensor, kept: Tensor, reason: str) -> None:
    """Compare the numbers of two tensors, a piece at a time.

    Args:
        copy: Will be left out.
        kept: Stands for both.
        reason: Why there can be one only, and what to do.

    Raises:
        CheckpointError: If shapes or any number differ.
    """
    if copy.shape == kept.shape:
        count, files = (kept.shape[0] if kept.shape else 1), Files()
        step = max(1, _NUMBERS_AT_A_TIME * count // max(kept.size, 1))
        if all(
            np.array_equal(copy.rows(begin, end, files), kept.rows(begin, end, files))
            for begin in range(0, count, step)
            for end in [min(begin + step, count)]
        ):
            return
    raise CheckpointError(f"{copy.file}: {copy.name} differs from {kept.name}, which it is tied to: {reason}")
