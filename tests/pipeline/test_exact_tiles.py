"""The decoder in exact tiles against the whole one, and the parts that its host side is made of against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from max_zimage.compile.registry import entry_of, find_entry
from max_zimage.components.vae_exact import Map, Statistics, side_of, tiles_of
from max_zimage.device.devices import upload
from max_zimage.errors import RequestError
from max_zimage.graphs.model.vae_blocks import NORM_EPS
from max_zimage.images.tiles import Tiling
from max_zimage.pipeline.stages import decoded
from tests.pipeline.test_tiled_pictures import latents
from tests.references.diffusers_runs import Pair, relative_l2
from tests.tolerances import BFLOAT16_RATIO, EXACT_TILES_SHARE

PROMPT = "a red star on a blue background"


def whole(pair: Pair, values: np.ndarray) -> np.ndarray:
    """What the decoder makes as a whole of latents whose channels are last."""
    batch, rows, columns, channels = values.shape
    squares = values.reshape(batch, rows // 2, 2, columns // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    tokens = squares.reshape(batch, rows * columns // 4, 4 * channels)
    return decoded(pair.ours.vae, upload(tokens, pair.ours.device), rows // 2, columns // 2)[0]


@pytest.mark.parametrize(
    ("height", "width", "tile"),
    [(512, 512, 128), (208, 304, 64), (144, 80, 96), (336, 64, 80)],
    ids=str,
)
def test_pictures_are_those_of_the_whole_decoder(
    height: int, width: int, tile: int, embedded: Pair, record_property: Any
) -> None:
    """Also with last tiles that are narrower than their margins, and tiles of half the side where layers are wide."""
    values = latents(height, width)
    ours, finite = embedded.ours.vae.decode_in_tiles(values, Tiling("exact", tile))
    difference = np.abs(ours.astype(int) - whole(embedded, values))
    record_property("share", np.mean(difference > 0))
    assert finite.all()
    assert difference.max() <= 1
    assert np.mean(difference > 0) <= EXACT_TILES_SHARE


def test_pictures_do_not_mix(embedded: Pair) -> None:
    """Two at a time, of which one is not finite."""
    values = np.concatenate([latents(96, 128, seed) for seed in (1, 2, 3)])
    expected = whole(embedded, values)
    values[1, 5, 3, 2] = np.inf
    for tiling in (Tiling("exact", 64), Tiling("blend", 64, 16)):
        ours, finite = embedded.ours.vae.decode_in_tiles(values, tiling)
        assert finite.tolist() == [True, False, True]
    ours, _ = embedded.ours.vae.decode_in_tiles(values[[0, 2]], Tiling("exact", 64))
    assert np.abs(ours.astype(int) - expected[[0, 2]]).max() <= 1


def test_a_request_asks_for_it(embedded: Pair) -> None:
    """From an image, too, which is encoded as a whole."""
    image = np.random.default_rng(0).integers(0, 256, (112, 144, 3), np.uint8)
    asked: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "output_type": "np", "guidance_scale": 0.0}
    for more in ({"height": 112, "width": 144}, {"image": image, "strength": 0.7}):
        plain = np.asarray(embedded.ours(PROMPT, **asked | more))
        tiles = np.asarray(embedded.ours(PROMPT, **asked | more, vae_tiling="exact", vae_tile_size=64))
        assert np.abs(tiles.astype(int) - plain).max() <= 1
    with pytest.raises(RequestError, match="vae_tile_overlap would do nothing"):
        embedded.ours(PROMPT, **asked, vae_tiling="exact", vae_tile_overlap=32)


def test_statistics_of_tiles_are_those_of_the_whole() -> None:
    """In float64, also where the mean is large beside the deviation."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((37, 53, 12)) * rng.uniform(0.1, 3, 12) + 1000 * rng.standard_normal(12)
    known = Statistics()
    for row in tiles_of(37, 53, 16):
        for tile in row:
            part = x[tile.rows, tile.columns].reshape(-1, 12)
            known.add(np.stack([part.mean(0), part.var(0)])[None], len(part))
    grouped = x.reshape(-1, 4, 3)
    mean, variance = grouped.mean((0, 2)), grouped.var((0, 2))
    found = known.of_groups(4)[0]
    assert known.count == 37 * 53
    np.testing.assert_allclose(found[0], mean.repeat(3), rtol=1e-6)
    np.testing.assert_allclose(found[1], 1 / np.sqrt(variance.repeat(3) + NORM_EPS), rtol=1e-6)


def test_tiles_with_their_margins_are_read_from_strips() -> None:
    """Whatever strips a map is in; none is needed twice."""
    x = np.arange(23 * 17 * 2).reshape(23, 17, 2)
    for height in (5, 8, 23):
        stored = Map(23, 17)
        for top in range(0, 23, height):
            stored.add(top, x[top : top + height])
        seen = np.zeros((23, 17), int)
        for row in tiles_of(23, 17, 6, margin=2):
            for tile in row:
                above, left, below, right = tile.around
                rows = slice(tile.rows.start - above, tile.rows.stop + below)
                columns = slice(tile.columns.start - left, tile.columns.stop + right)
                np.testing.assert_array_equal(stored.read(tile)[0], x[rows, columns])
                assert (above, left) == (min(2, tile.rows.start), min(2, tile.columns.start))
                seen[tile.rows, tile.columns] += 1
            stored.forget_above(row[0].rows.stop - 2)
        assert (seen == 1).all()


def test_graphs_of_units_have_numbers() -> None:
    numbered = entry_of("exact_first_3")
    assert (numbered.name, numbered.label) == ("exact_first_3", entry_of("exact_first").label)
    assert find_entry("exact_middle_3") is find_entry("exact_first_last") is find_entry("decode_3") is None
    with pytest.raises(KeyError):
        entry_of("exact_third")


@pytest.mark.slow
@pytest.mark.parametrize("tiling", [Tiling("exact", 64), Tiling("blend", 64, 16)], ids=lambda tiling: tiling.kind)
def test_in_bfloat16(tiling: Tiling, embedded_bfloat16: Pair, embedded: Pair) -> None:
    """Exact tiles are the whole decoder's in its own dtype; blended ones as near to float32 as the whole decoder is."""
    values = latents(96, 144)
    ours, finite = embedded_bfloat16.ours.vae.decode_in_tiles(values, tiling)
    assert finite.all()
    expected = whole(embedded_bfloat16, values)
    if tiling.kind == "exact":
        assert np.abs(ours.astype(int) - expected).max() <= 1
        return
    exact, _ = embedded.ours.vae.decode_in_tiles(values, tiling)
    own = relative_l2(expected.astype(np.float32), whole(embedded, values).astype(np.float32))
    assert relative_l2(ours.astype(np.float32), exact.astype(np.float32)) <= BFLOAT16_RATIO * own


def test_wider_layers_have_smaller_tiles(embedded: Pair) -> None:
    spec = embedded.ours.vae.spec  # 16 channels at full size, 96 at its smallest
    assert [side_of(spec, Tiling("exact", 256), channels) for channels in (16, 32, 64, 96)] == [256, 128, 128, 64]
