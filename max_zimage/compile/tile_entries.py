"""The graphs of the registry that take pictures through the autoencoder in tiles."""

from __future__ import annotations

from max_zimage.compile import counting
from max_zimage.compile.entry import Entry
from max_zimage.graphs.model.vae_exact import ExactFirst, ExactMiddle, ExactPixels, ExactSecond, ExactUpsample
from max_zimage.graphs.model.vae_tiles import DecodeTile, EncodeTile, StartFromMoments

TILES = (
    Entry(
        name="decode_tile",
        component="vae",
        make=DecodeTile,
        label="VAE decode, tiles",
        runs="with blended tiles: once per tile, at a request's end",
        count=counting.count_decode_tile,
    ),
    Entry(
        name="encode_tile",
        component="vae",
        make=EncodeTile,
        label="VAE encode, tiles",
        runs="with blended tiles: once per tile of an image to begin with",
    ),
    Entry(
        name="start_from_moments",
        component="vae",
        make=StartFromMoments,
        label="start from moments",
        runs="with blended tiles: once per request of image-to-image",
        is_float32=True,
    ),
    Entry(
        name="exact_middle",
        component="vae",
        make=ExactMiddle,
        label="VAE decode, middle",
        runs="with exact tiles: once per picture",
    ),
    Entry(
        name="exact_upsample",
        component="vae",
        make=ExactUpsample,
        label="VAE decode, enlargement",
        runs="with exact tiles: three times per tile of a unit that begins with it",
        is_numbered=True,
    ),
    Entry(
        name="exact_first",
        component="vae",
        make=ExactFirst,
        label="VAE decode, first convolutions",
        runs="with exact tiles: twice per tile of a unit",
        is_numbered=True,
    ),
    Entry(
        name="exact_second",
        component="vae",
        make=ExactSecond,
        label="VAE decode, second convolutions",
        runs="with exact tiles: once per tile of a unit",
        is_numbered=True,
    ),
    Entry(
        name="exact_pixels",
        component="vae",
        make=ExactPixels,
        label="VAE decode, pixels",
        runs="with exact tiles: once per tile, at a request's end",
    ),
)
"""Of `max_zimage.compile.registry.GRAPHS`."""
