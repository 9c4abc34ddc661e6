"""Fields about tiles: what is refused, and what they come to."""

from __future__ import annotations

from typing import Any

import pytest

from max_zimage import ZImagePipeline
from max_zimage.cli.field_flags import given_fields
from max_zimage.cli.main import _parser
from max_zimage.errors import RequestError
from max_zimage.images.tiles import Tiling
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.request.request import GenerationRequest


@pytest.fixture(scope="module")
def model() -> CheckedModel:
    return ZImagePipeline.prepare(device="cpu")


def asked(model: CheckedModel, **fields: Any) -> GenerationRequest:
    return GenerationRequest.create(
        limits=model.sources.limits, defaults=model.sources.defaults, prompt="x", seed=1, **fields
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"vae_tiling": "on"}, "vae_tiling must be one of off, blend, exact, got 'on'"),
        ({"vae_tile_size": 256}, "vae_tile_size would do nothing; set vae_tiling to blend or exact too"),
        ({"vae_tile_overlap": 32}, "vae_tile_overlap would do nothing; set vae_tiling to blend too"),
        ({"vae_tiling": "exact", "vae_tile_overlap": 32}, "vae_tile_overlap would do nothing; set vae_tiling to blend"),
        ({"vae_tiling": "blend", "vae_tile_size": 48}, "vae_tile_size must be from 64 to 8192, got 48"),
        ({"vae_tiling": "blend", "vae_tile_size": 8208}, "vae_tile_size must be from 64 to 8192, got 8208"),
        ({"vae_tiling": "blend", "vae_tile_size": 256.0}, "vae_tile_size must be a whole number from 64 to 8192"),
        (
            {"vae_tiling": "blend", "vae_tile_size": 520},
            "vae_tile_size must be a multiple of 16, got 520; the nearest are 512 and 528",
        ),
        (
            {"vae_tiling": "blend", "vae_tile_overlap": 20},
            "vae_tile_overlap must be a multiple of 16, got 20; the nearest are 16 and 32",
        ),
        ({"vae_tiling": "blend", "vae_tile_overlap": -16}, "vae_tile_overlap must be from 0 to 8192, got -16"),
        (
            {"vae_tiling": "blend", "vae_tile_size": 64},
            "vae_tile_overlap must be below vae_tile_size, got 64 and 64; an eighth of it is usual",
        ),
    ],
    ids=str,
)
def test_what_does_not_do(fields: dict[str, Any], says: str, model: CheckedModel) -> None:
    with pytest.raises(RequestError, match=says):
        asked(model, **fields)


def test_all_that_is_wrong_is_said_together(model: CheckedModel) -> None:
    with pytest.raises(RequestError) as caught:
        asked(model, vae_tiling="maybe", vae_tile_size=0, vae_tile_overlap="many", height=10)
    assert {problem.field for problem in caught.value.problems} >= {"vae_tiling", "vae_tile_size", "vae_tile_overlap"}


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ([], {}),
        (["--tiled-vae"], {"vae_tiling": "blend"}),
        (["--tiled-vae", "exact", "--tile-size", "256"], {"vae_tiling": "exact", "vae_tile_size": 256}),
        (["--tiled-vae", "--tile-overlap", "32"], {"vae_tiling": "blend", "vae_tile_overlap": 32}),
    ],
    ids=str,
)
def test_flags(flags: list[str], fields: dict[str, object]) -> None:
    """The first one stands for blended tiles where it has no value."""
    given = given_fields(_parser().parse_args(["generate", "x", *flags]))
    assert {name: value for name, value in given.items() if name.startswith("vae")} == fields


def test_what_tiles_are_used(model: CheckedModel) -> None:
    assert asked(model).tiling == Tiling()
    tiling = asked(model, vae_tiling="blend", vae_tile_size=256, vae_tile_overlap=32).tiling
    assert tiling == Tiling("blend", 256, 32)
    assert not tiling.is_needed(256, 256)
    assert tiling.is_needed(256, 272)
    assert not Tiling().is_needed(4096, 4096)
