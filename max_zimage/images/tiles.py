"""Pictures in tiles: where tiles lie, and how those that overlap become one picture again.

    starts 0, s, 2s, ... with s = tile - overlap; the last tile is what is left
    a tile's first rows fade over from the last rows of the tile above it, then its first columns from the tile left of
    it, both as they have become; of each tile s rows and s columns are kept

Reference: diffusers models/autoencoders/autoencoder_kl.py (tiled_decode, _tiled_encode, blend_v, blend_h).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

TilingKind = Literal["off", "blend", "exact"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tiling:
    """How an autoencoder takes pictures.

    Attributes:
        kind: "off" as a whole, "blend" in tiles that know nothing of each other and fade into each other, or "exact" in
            tiles that together make what the whole would have made.
        size: Side of a tile in pixels.
        overlap: Pixels that neighbours share, of "blend".
    """

    kind: TilingKind = "off"
    size: int = 512
    overlap: int = 64

    def is_needed(self, height: int, width: int) -> bool:
        """Whether a picture of this many pixels is taken in tiles: not if it fits into one."""
        return self.kind != "off" and max(height, width) > self.size


WHOLE = Tiling()
"""No tiles."""


def starts(length: int, tile: int, overlap: int) -> range:
    """Where tiles begin along one side.

    >>> list(starts(128, 64, 8))
    [0, 56, 112]
    """
    return range(0, length, tile - overlap)


def blended(rows: Iterable[Sequence[Floats]], tile: int, overlap: int) -> Iterator[Floats]:
    """Rows of tiles to the strips of a picture; no more than two rows are held at a time.

    Args:
        rows: From the top, each from the left: float32 [height, width, channels], at most `tile` a side, which are
            changed.
        tile: Side of a full tile.
        overlap: Of neighbours.

    Yields:
        float32 [up to tile - overlap, the picture's width, channels].
    """
    above: Sequence[Floats] | None = None
    kept = tile - overlap
    for row in rows:
        for index, each in enumerate(row):
            if above is not None:
                _fade(above[index], each, overlap)
            if index > 0:
                _fade(row[index - 1].swapaxes(0, 1), each.swapaxes(0, 1), overlap)
        yield np.concatenate([each[:kept, :kept] for each in row], axis=1)
        above = row


def _fade(before: Floats, after: Floats, overlap: int) -> None:
    """Fade the first rows of one tile over from the last rows of another; as many as both have."""
    extent = min(len(before), len(after), overlap)
    if extent == 0:
        return
    share = (np.arange(extent) / extent).astype(np.float32)[:, None, None]
    other = (1 - np.arange(extent) / extent).astype(np.float32)[:, None, None]
    after[:extent] = before[-extent:] * other + after[:extent] * share
