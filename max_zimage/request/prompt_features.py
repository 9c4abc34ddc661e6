"""Text features of a prompt, and what they were made by: encoded once, drawn from later or elsewhere.

`max_zimage.request.features_file` says how they are kept in a file.

Reference: llm-dit src/llm_dit/distributed/embeddings.py, whose files are read too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from max_zimage.images.save import ImageFileError, save_new
from max_zimage.request.features_file import (
    NEGATIVE,
    POSITIVE,
    FloatArray,
    check_features_writable,
    content_of,
    read,
    warn_of_sidecar,
    written,
)
from max_zimage.request.hidden_layer import DEFAULT_HIDDEN_LAYER, HiddenLayer
from max_zimage.request.hidden_layer import written as written_layers
from max_zimage.request.layer_values import decoded
from max_zimage.request.modes import REFUSE


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """What features were made by.

    Attributes:
        prompt: The text that was encoded.
        negative_prompt: The same of the negative features; None where there are none.
        hidden_layer: Which of the text encoder's states they are.
        system_prompt: What stood before the prompt; see `max_zimage.request.text_fields`, also for the next three.
        thinking_content: What stood in the answer's <think> block.
        assistant_content: The answer.
        long_prompt_mode: What became of too many tokens.
        max_sequence_length: How many a prompt could have.
        template: Digest of the chat template.
        tokenizer_digest: Of the tokenizer's file.
        encoder_digest: Of the text encoder's weights, see `max_zimage.checkpoint.digest`.
        dtype: That the text encoder ran in, "float32" or "bfloat16".
        device: "cpu" or "gpu", whose sums are not the same to the last bit.
        version: Of max_zimage.
    """

    prompt: str
    negative_prompt: str | None = None
    hidden_layer: HiddenLayer = DEFAULT_HIDDEN_LAYER
    system_prompt: str = ""
    thinking_content: str = ""
    assistant_content: str = ""
    long_prompt_mode: str = REFUSE
    max_sequence_length: int
    template: str
    tokenizer_digest: str
    encoder_digest: str
    dtype: str
    device: str
    version: str


_NAMES = tuple(field.name for field in fields(MadeBy))


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptFeatures:
    """The features of one prompt, and maybe of a negative one.

    Attributes:
        positive: float32 [tokens, width], whatever dtype the text encoder ran in; as many rows as the prompt has
            tokens, without padding, or as few as the transformer has positions for.
        negative: The same of a negative prompt, or None.
        made_by: What they were made by; None where that is not known.
    """

    positive: FloatArray
    negative: FloatArray | None = None
    made_by: MadeBy | None = None

    @property
    def tokens(self) -> int:
        """Rows of the positive features."""
        return len(self.positive)

    @property
    def digest(self) -> str:
        """By which the numbers are known again, in whatever file and dtype they are kept."""
        found = hashlib.sha256()
        for each in (self.positive, self.negative):
            if each is not None:
                found.update(f"{each.shape}".encode())
                found.update(np.ascontiguousarray(each, np.float32).tobytes())
        return f"sha256:{found.hexdigest()}"

    def to_bytes(self) -> bytes:
        """A safetensors file; see `max_zimage.request.features_file`."""
        tensors = {POSITIVE: self.positive}
        if self.negative is not None:
            tensors[NEGATIVE] = self.negative
        return written(tensors, {"tokens": f"{self.tokens}", **_header(self.made_by)})

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "features") -> PromptFeatures:
        """Read what `to_bytes` made, or a file of llm-dit's.

        Args:
            content: The file.
            name: What messages call it.

        Raises:
            ImageFileError: If it is no safetensors file of features, or holds NaN, infinity or no row.
        """
        tensors, said = read(content, name)
        positive, negative = tensors[POSITIVE], tensors.get(NEGATIVE)
        made_by = _made_by(said, name, len(positive), has_negative=negative is not None)
        return cls(positive=positive, negative=negative, made_by=made_by)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as a safetensors file that does not exist yet, whole or not at all.

        Raises:
            ImageFileError: If the name ends in something else than .safetensors, or the file exists or cannot be
                written; nothing is left behind.
        """
        check_features_writable(Path(path))
        save_new(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PromptFeatures:
        """Read a file of `save`, or one of llm-dit's, beside which a JSON file may lie.

        Raises:
            ImageFileError: If there is no such file, or as `from_bytes`.

        Warns:
            RequestWarning: If the JSON file says another shape than the tensor has.
        """
        found = cls.from_bytes(content_of(Path(path)), str(path))
        if found.made_by is None:
            warn_of_sidecar(found.positive.shape, Path(path))
        return found


def _header(made: MadeBy | None) -> dict[str, str]:
    """What a file's header says of what features were made by."""
    if made is None:
        return {}
    values = {name: getattr(made, name) for name in _NAMES}
    values["hidden_layer"] = written_layers(made.hidden_layer)
    # The last is how the chat template is always asked; readers of other programs want to know.
    return {name: f"{value}" for name, value in values.items() if value is not None} | {"enable_thinking": "true"}


def _made_by(said: Mapping[str, str], name: str, tokens: int, *, has_negative: bool) -> MadeBy | None:
    """What a header says; None for one that says nothing of it.

    Args:
        said: The header.
        name: What messages call the file.
        tokens: Rows of the positive features.
        has_negative: Whether there are negative ones.
    """
    if "prompt" not in said:
        return None
    wanted = [each for each in (*_NAMES, "tokens") if has_negative or each != "negative_prompt"]
    problems = [f"its header lacks {each}" for each in wanted if each not in said]
    if said.get("tokens", f"{tokens}") != f"{tokens}":
        problems.append(f"its header says {said['tokens']} tokens, and the tensor has {tokens} rows")
    values: dict[str, Any] = {each: said.get(each, "") for each in _NAMES}
    try:
        values["hidden_layer"] = decoded(said.get("hidden_layer", ""))
        values["max_sequence_length"] = int(said.get("max_sequence_length", ""))
    except ValueError as error:
        problems.append(f"its header cannot be read: {error}")
    if problems:
        raise ImageFileError(f"{name} is damaged: {'; '.join(problems)}. Encode the prompt again")
    return MadeBy(**values | ({} if has_negative else {"negative_prompt": None}))
