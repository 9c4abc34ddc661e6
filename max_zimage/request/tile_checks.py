"""Whether what a request says of tiles fits together, and does anything."""

from __future__ import annotations

from max_zimage.errors import RequestError
from max_zimage.request.facts import RequestFacts
from max_zimage.request.tile_fields import TILE_OVERLAP, TILE_SIZE, VAE_TILINGS

STEP = 16
"""Sides of tiles are multiples of it, as those of pictures: two latent pixels, eight pixels each."""


def check_tiles(asked: RequestFacts) -> None:
    """Refuse what contradicts itself or would do nothing."""
    kind, size, overlap = asked.vae_tiling, asked.vae_tile_size, asked.vae_tile_overlap
    if kind == VAE_TILINGS[0] and size != TILE_SIZE:
        message = "{field} would do nothing; set {name[vae_tiling]} to blend or exact too, or leave it out"
        raise RequestError.of("vae_tile_size", message)
    if kind != "blend" and overlap != TILE_OVERLAP:
        message = "{field} would do nothing; set {name[vae_tiling]} to blend too, or leave it out"
        raise RequestError.of("vae_tile_overlap", message)
    for name, given in (("vae_tile_size", size), ("vae_tile_overlap", overlap)):
        if given % STEP:
            below = given // STEP * STEP
            message = "{field} must be a multiple of {step}, got {given}; the nearest are {below} and {above}"
            raise RequestError.of(name, message, step=STEP, given=given, below=below, above=below + STEP)
    if kind == "blend" and overlap >= size:
        message = "{field} must be below {name[vae_tile_size]}, got {given} and {size}; an eighth of it is usual"
        raise RequestError.of("vae_tile_overlap", message, given=overlap, size=size)
