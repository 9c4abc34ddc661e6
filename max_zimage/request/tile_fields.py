"""The fields of a request that say how the autoencoder takes its picture: whole or in tiles; a part of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from max_zimage.request.kinds import Choice, Kind, Whole
from max_zimage.request.row import Flag, Images, Kept, Responses, row

VAE_TILINGS = ("off", "blend", "exact")
TILE_SIZE, TILE_OVERLAP = 512, 64
"""Pixels, where a request names none."""
MAX_TILE = 8192


def _row(kind: Kind, name: str, flag: Flag, text: str, kept: str, default: object) -> Any:
    return row(
        kind,
        default=default,
        flag=flag,
        images=Images(name, text),
        responses=Responses(name, place="metadata", param="metadata"),
        kept=Kept(kept, since=4, before=default),
        shared="value",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TileFields:
    """How the autoencoder takes pictures that are larger than a tile; smaller ones are always taken as a whole.

    Attributes:
        vae_tiling: "off"; "blend", tiles that fade into each other, as diffusers does; or "exact", tiles that make the
            picture of the whole autoencoder.
        vae_tile_size: Side of a tile in pixels, a multiple of 16.
        vae_tile_overlap: Pixels that neighbours share under "blend", a multiple of 16.
    """

    vae_tiling: str = _row(
        Choice(words=VAE_TILINGS),
        "vae_tiling",
        Flag("--tiled-vae", "HOW", "decode in tiles: blend unless said, or exact", "fine tuning", bare="blend"),
        "Whether large pictures are decoded in tiles: off, blend or exact.",
        "str",
        "off",
    )
    vae_tile_size: int = _row(
        Whole(low=64, high=MAX_TILE),
        "vae_tile_size",
        Flag("--tile-size", "PIXELS", "side of a tile, a multiple of 16", "fine tuning"),
        "Side of a tile in pixels, a multiple of 16.",
        "int",
        TILE_SIZE,
    )
    vae_tile_overlap: int = _row(
        Whole(low=0, high=MAX_TILE),
        "vae_tile_overlap",
        Flag("--tile-overlap", "PIXELS", "blend: what neighbouring tiles share, a multiple of 16", "fine tuning"),
        "Pixels that neighbouring tiles share under blend, a multiple of 16.",
        "int",
        TILE_OVERLAP,
    )
