"""Pictures whose autoencoder takes them in tiles: blended ones against diffusers, and where a picture fits into one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from max_zimage.components.vae_tiles import decoded_rows, encode_blended
from max_zimage.images.tiles import Floats, Tiling, blended
from tests.pipeline.test_image_to_image import start
from tests.pipeline.test_image_to_image import theirs as image_to_image_of_diffusers
from tests.references.diffusers_runs import Call, Pair, relative_l2
from tests.serving.test_step_scheduler import Worker
from tests.tolerances import ENCODER_L2, PIXEL_SHARE

PROMPT = "a red star on a blue background"
SIZES = [
    (208, 304, 128, 32),  # last tiles of 16 and 16 pixels
    (80, 112, 64, 16),  # of 32 and 16: narrower than the overlap in one direction only
    (160, 96, 96, 0),  # side by side, and a single column
    (112, 80, 64, 48),  # each pixel in up to sixteen tiles, and several tails
]


@contextmanager
def tiled(pair: Pair, tile: int, overlap: int) -> Iterator[Any]:
    """Diffusers' autoencoder in tiles of this size."""
    vae = pair.theirs.vae
    kept = vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor, vae.use_tiling
    vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // 8
    vae.tile_overlap_factor, vae.use_tiling = overlap / tile, True
    # What diffusers makes of the share must be what is meant: it cuts both numbers off.
    assert int(tile // 8 * (1 - overlap / tile)) * 8 == tile - int(tile * overlap / tile) == tile - overlap
    try:
        yield vae
    finally:
        vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor, vae.use_tiling = kept


def latents(height: int, width: int, seed: int = 3) -> Floats:
    """Smooth in places, so that tiles differ."""
    noise = np.random.default_rng(seed).standard_normal((1, height // 8, width // 8, 16)).astype(np.float32)
    return noise * np.linspace(0.2, 1.5, width // 8, dtype=np.float32)[None, None, :, None]


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), SIZES)
def test_decoded_floats_are_those_of_diffusers(
    height: int, width: int, tile: int, overlap: int, embedded: Pair, record_property: Any
) -> None:
    vae, given, finite = embedded.ours.vae, latents(height, width), np.ones(1, np.bool_)
    rows = decoded_rows(vae, given[0], Tiling("blend", tile, overlap), finite)
    ours = np.concatenate(list(blended(rows, tile, overlap)))
    scaled = torch.from_numpy(given).permute(0, 3, 1, 2) / vae.spec.scaling_factor + vae.spec.shift_factor
    with tiled(embedded, tile, overlap) as theirs, torch.no_grad():
        expected = theirs.tiled_decode(scaled).sample[0].permute(1, 2, 0).numpy()
    error = relative_l2(ours, expected)
    record_property("relative_l2", error)
    assert error <= ENCODER_L2
    assert finite.all()


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), SIZES)
def test_encoded_moments_are_those_of_diffusers(
    height: int, width: int, tile: int, overlap: int, embedded: Pair, record_property: Any
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    image[:, : width // 2] //= 3
    ours = encode_blended(embedded.ours.vae, image, Tiling("blend", tile, overlap))
    signed = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with tiled(embedded, tile, overlap) as theirs, torch.no_grad():
        expected = theirs.encode(signed).latent_dist.parameters.permute(0, 2, 3, 1).numpy()
    error = relative_l2(ours, expected)
    record_property("relative_l2", error)
    assert error <= ENCODER_L2


def test_pictures_are_those_of_diffusers(embedded: Pair) -> None:
    """Several at once; bytes are rounded after blending."""
    call = Call(height=144, width=208, copies=2, steps=2)
    asked: dict[str, Any] = {"vae_tiling": "blend", "vae_tile_size": 128, "vae_tile_overlap": 32}
    ours = embedded.ours(**embedded.arguments(call), output_type="np", **asked)
    with tiled(embedded, 128, 32):
        expected = embedded.run_theirs(call).pixels
    assert np.mean(np.abs(np.asarray(ours).astype(int) - expected) <= 1) >= PIXEL_SHARE
    whole = embedded.ours(**embedded.arguments(call), output_type="np")
    assert np.abs(np.asarray(whole).astype(int) - expected).max() > 2


def test_image_to_image_is_that_of_diffusers(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is encoded in tiles, too."""
    common: dict[str, Any] = {"strength": 0.5, "num_inference_steps": 4, "guidance_scale": 0.0}
    image, prompt = start(144, 208), "a green circle on a black background"
    asked: dict[str, Any] = {"vae_tiling": "blend", "vae_tile_size": 64, "vae_tile_overlap": 16}
    ours = embedded.ours(prompt, image=Image.fromarray(image), seed=17, output_type="np", **common, **asked)
    with tiled(embedded, 64, 16):
        expected = image_to_image_of_diffusers(embedded, monkeypatch, image, **common)
    assert np.mean(np.abs(np.asarray(ours).astype(int) - expected) <= 1) >= PIXEL_SHARE


@pytest.mark.parametrize("kind", ["blend", "exact"])
def test_a_picture_that_fits_into_a_tile_is_the_same_to_the_bit(kind: str, embedded: Pair) -> None:
    asked: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 2, "seed": 3, "output_type": "np"}
    plain = np.asarray(embedded.ours(PROMPT, **asked))
    tiles = np.asarray(embedded.ours(PROMPT, **asked, vae_tiling=kind, vae_tile_size=112))
    np.testing.assert_array_equal(tiles, plain)


def test_a_server_draws_the_same(embedded: Pair) -> None:
    """Requests share a batch if their tiles are the same."""
    worker = Worker(embedded.ours)
    text = {"vae_tiling": "blend", "vae_tile_size": "64", "vae_tile_overlap": "16"}
    first, second, other = (
        worker.ask(PROMPT, seed=seed, metadata=metadata)
        for seed, metadata in ((5, text), (6, text), (7, text | {"vae_tile_overlap": "32"}))
    )
    worker.finish()
    asked: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 3, "guidance_scale": 2.0}
    asked |= {"vae_tiling": "blend", "vae_tile_size": 64, "vae_tile_overlap": 16, "output_type": "np"}
    assert worker.steps(first)[-1][1] == worker.steps(second)[-1][1] == 2
    assert worker.steps(other)[-1][1] == 1
    for request, seed in ((first, 5), (second, 6)):
        expected = np.asarray(embedded.ours(PROMPT, seed=seed, **asked))[0]
        assert np.mean(np.abs(worker.pictures(request)[0].astype(int) - expected) <= 1) > PIXEL_SHARE
