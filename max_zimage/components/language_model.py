"""The language model that a text encoder is a part of: token ids to the logits of the next one.

All layers run over the whole text for every token; nothing is kept from one token to the next. On an accelerator that
costs little beside reading the weights, which each token takes in any case; on a CPU it takes as long as the text is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from max_zimage.checkpoint.language_head import LanguageModelPlan
from max_zimage.components.text_encoder import ZImageTextEncoderModel
from max_zimage.device.devices import download, upload
from max_zimage.request.hidden_layer import HiddenLayer

_LAST: HiddenLayer = ((-1, 1.0),)
"""The state behind the final norm, whole."""


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
        self.next_logits([0])

    def next_logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """What follows a text.

        Args:
            ids: The text, at least one token and at most `max_positions`.

        Returns:
            float32 [vocab_size].

        Raises:
            ValueError: If an id has no embedding.
        """
        states = self._encoder([np.asarray(ids, np.int64)], _LAST)
        place = upload(np.array([len(ids) - 1], np.int64), self._encoder.device)
        logits: npt.NDArray[np.float32] = download(self._head(states, place)[0])[0]
        return logits
