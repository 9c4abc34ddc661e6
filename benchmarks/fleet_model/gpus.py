"""Seconds of a batch on a GPU, derived: the published model on an H200 in bfloat16, Turbo's eight evaluations.

A block over 4,160 tokens (1024x1024 and a caption of 64) is derived at 2.75 ms, of which attention takes 0.5 ms, which
grows with the square of the tokens, and the rest with the tokens; the same block in its older form was measured at
3.62 ms on an H200. A step has 32 of them. The autoencoder decodes 1024x1024 in 35 ms, which grows with the pixels; a
prompt takes 10 ms. A batch of n pictures takes n times that of one, but for what every step has once (`ONCE`): at these
sizes a GPU is busy with one picture, so that company saves little.

Reference: benchmarks/gpu_run/expected.py; docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BLOCKS, EVALUATIONS, CAPTION = 32, 8, 64
AT = 4160
"""Tokens of the block that the seconds below are of."""
LINEAR, ATTENTION = 2.25e-3, 0.5e-3
"""Seconds of that block without attention, and of its attention."""
ONCE = 2e-3
"""Seconds of a step however many pictures it has: launches that a small picture waits for. An assumption."""
DECODE = 35e-3
"""Seconds of decoding 1024x1024."""
ENCODE = 10e-3
"""Seconds of a prompt's features."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size of pictures.

    Attributes:
        width: Pixels.
        height: Pixels.
        share: Of all requests.
    """

    width: int
    height: int
    share: float

    @property
    def tokens(self) -> int:
        """Of a picture and its caption."""
        return self.width * self.height // 256 + CAPTION


MIX = (
    Size(width=512, height=512, share=0.2),
    Size(width=768, height=768, share=0.2),
    Size(width=1024, height=1024, share=0.45),
    Size(width=1536, height=1024, share=0.15),
)
"""Of mixed sizes: an assumption, as all that is derived from it."""


def parts(shape: int, pictures: int) -> Sequence[float]:
    """Seconds of a batch, as one part: nothing is to be decided while it is drawn.

    Args:
        shape: Place in `MIX`.
        pictures: Of the batch.
    """
    size = MIX[shape]
    grown = size.tokens / AT
    step = BLOCKS * (LINEAR * grown + ATTENTION * grown**2)
    decode = DECODE * size.width * size.height / 2**20
    return [EVALUATIONS * (ONCE + pictures * step) + pictures * decode]


def mean_seconds(hits: float) -> float:
    """Seconds that a GPU has to do for a request of the mix, alone.

    Args:
        hits: Share of prompts whose features are kept.
    """
    drawn = sum(size.share * sum(parts(shape, 1)) for shape, size in enumerate(MIX))
    return drawn + (1 - hits) * ENCODE
