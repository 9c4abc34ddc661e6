"""The language model that a text encoder is a part of: token ids to the logits of the next one.

read: new tokens, keys and values of those before -> logits of the next token, keys and values of all

The conversation is read once, some hundred tokens at a time, and then what is written token by token. Keys and values
stay on the device, and every reading returns new ones: a text can be continued in several ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.checkpoint.language_head import LanguageModelPlan
from max_zimage.components.encoder_layers import Kept
from max_zimage.components.text_encoder import ZImageTextEncoderModel
from max_zimage.device.devices import download, upload
from max_zimage.sampling.positions import padded, text_rope

_HIDDEN = np.float32(-1e30)  # exp() of it is zero next to any real score
_PIECE = 512
"""New tokens that are read at a time: masks are as large as these times all that was read, and not its square."""


@dataclass(frozen=True, eq=False)
class ReadText:
    """What was read.

    Attributes:
        length: Tokens of it.
        kept: Their keys and values, of each layer.
    """

    length: int
    kept: Kept


class LanguageModel:
    """A text encoder with a head.

    Args:
        encoder: All of whose layers run.
        checked: What is loaded of its files.

    Attributes:
        vocab_size: Tokens there are.
        max_positions: Tokens that a text may have.
    """

    def __init__(self, encoder: ZImageTextEncoderModel, checked: LanguageModelPlan) -> None:
        self._encoder = encoder
        self.vocab_size, self.max_positions = encoder.spec.vocab_size, encoder.spec.max_positions
        self._head = encoder.define("text_encoder_head", encoder.placed(encoder.load_weights(checked=checked.head)))

    def compile(self) -> None:
        """Compile its graphs, or find them on disk."""
        self.read([0])

    def read(self, ids: Sequence[int], before: ReadText | None = None) -> tuple[npt.NDArray[np.float32], ReadText]:
        """Read on, and say what follows.

        Args:
            ids: New tokens, at least one, and with those before at most `max_positions`.
            before: What stands before them; None for the beginning of a text. It can be read on from again.

        Returns:
            Logits of the next token, float32 [vocab_size], and all that was read.

        Raises:
            ValueError: If there are no ids, too many, or one that has no embedding.
        """
        begin, spec, device = 0 if before is None else before.length, self._encoder.spec, self._encoder.device
        end = begin + len(ids)
        if not begin < end <= self.max_positions:
            raise ValueError(
                f"{len(ids)} tokens behind {begin} must be at least 1 and at most {self.max_positions} together"
            )
        tokens = np.asarray(ids, np.int64)[None]
        self._encoder.check_ids(tokens)
        self._encoder.come()
        rope = text_rope(spec.head_dim, spec.rope_theta, padded(end))
        kept = self._nothing() if before is None else before.kept
        for first in range(begin, end, _PIECE):
            last = min(first + _PIECE, end)
            mask = np.where(np.arange(last) <= np.arange(first, last)[:, None], np.float32(0), _HIDDEN)[None]
            given = tokens[:, first - begin : last - begin], rope[first:last], mask
            new, table, hidden = (upload(np.ascontiguousarray(each), device) for each in given)
            states, kept = self._encoder.layers.read_on(new, table, hidden, kept)
        place = upload(np.array([last - first - 1], np.int64), device)
        logits: npt.NDArray[np.float32] = download(self._head(states, place)[0])[0]
        return logits, ReadText(end, kept)

    def _nothing(self) -> Kept:
        """Keys and values of no tokens."""
        spec = self._encoder.spec
        shape = (1, 0, spec.num_kv_heads, spec.head_dim)
        empty = Buffer.zeros(shape, self._encoder.dtype, self._encoder.device)
        return ((empty, empty),) * spec.num_layers
