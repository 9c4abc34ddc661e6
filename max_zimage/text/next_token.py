"""Which token comes next, of the logits of all of them: the likeliest, or one that is drawn.

logits / temperature -> the top_k likeliest -> of those the likeliest that have top_p of the probability -> a draw

The draw of token t is number t of a stream of the text's own seed, so that a text is the same on every machine on which
its logits are. Of equal logits the smaller id comes first.

Reference: transformers generation/logits_process.py, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from max_zimage.sampling.noise import uniform

STREAM = int.from_bytes(b"nexttokn", "big")
"""The second word of Philox' key: apart from all noise of a picture of the same seed."""


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest.
        top_p: Share of the probability that is drawn from, above 0 and at most 1.
        top_k: Tokens that are drawn from; 0 for all.
    """

    temperature: float
    top_p: float
    top_k: int

    def numbers(self, seed: int, count: int) -> npt.NDArray[np.float64]:
        """What draws the tokens of a text, float64 [count] in [0, 1)."""
        return uniform(seed, (count,), STREAM)

    def choose(self, logits: npt.NDArray[np.float32], number: float) -> int:
        """The next token.

        Args:
            logits: float32 [vocabulary].
            number: In [0, 1).
        """
        if self.temperature == 0:
            return int(logits.argmax())
        tokens, shares = self.candidates(logits)
        place = int(np.searchsorted(np.cumsum(shares), number * shares.sum(), side="right"))
        return int(tokens[min(place, len(tokens) - 1)])

    def candidates(self, logits: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """What is drawn from.

        Args:
            logits: float32 [vocabulary].

        Returns:
            Tokens int64 [candidates], the likeliest first, and their probabilities float64, which sum to 1.
        """
        order = np.argsort(-logits, kind="stable")
        order = order[: self.top_k] if self.top_k else order
        scaled = logits[order].astype(np.float64) / self.temperature
        shares = np.exp(scaled - scaled[0])
        shares /= shares.sum()
        # The one that crosses top_p is the last; the first stays in any case.
        kept = 1 + int(np.sum(np.cumsum(shares)[:-1] < self.top_p))
        return order[:kept], shares[:kept] / shares[:kept].sum()
