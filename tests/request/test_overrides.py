"""Flags beside a picture that is repeated: what only went with a value that is replaced goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from max_zimage.cli.repeating import without_replaced
from max_zimage.request.configured import with_configured
from max_zimage.request.list_kinds import Wholes
from max_zimage.request.metadata import read_parameters
from max_zimage.request.templates import Templates
from tests.request.conftest import Repeat

FIRST = (
    *("a red star", "--steps", "2", "--height", "64", "--width", "64", "--seed", "3", "--guidance", "2,1"),
    *("--slg", "--slg-layers", "1-2", "--slg-start", "0", "--guidance-variant", "apg", "--apg-momentum=-0.5"),
    *("--guidance-rescale", "0.5", "--variation-seed", "4", "--variation-strength", "0.2", "--seed-variance", "0.1"),
    *("--seed-variance-share", "0.3", "--system-prompt", "You draw stars."),
    *("--dype", "--dype-base-resolution", "32", "--dype-scale", "1.5", "--dype-start-sigma", "0.5"),
)


@pytest.fixture
def drawn(repeat: Repeat) -> None:
    assert repeat(*FIRST, "--output", "a.png") == (0, "")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), {"slg_scale": 2.5, "slg_layers": (1, 2), "guidance_scale": (2.0, 1.0), "variation_seed": 4}),
        (("--slg",), {"slg_scale": 2.5, "slg_layers": (1, 2)}),
        (("--slg-scale", "1"), {"slg_scale": 1.0, "slg_layers": (1, 2)}),
        (("--slg-scale", "0"), {"slg_scale": 0.0, "slg_layers": None}),
        (("--guidance-variant", "cfg"), {"guidance_variant": "cfg", "apg_momentum": 0.0, "guidance_rescale": 0.5}),
        (("--guidance", "0"), {"guidance_variant": "cfg", "slg_scale": 2.5, "guidance_scale": 0.0}),
        (("--steps", "3"), {"num_inference_steps": 3, "slg_layers": (1, 2)}),
        (("--variation-strength", "0"), {"variation_seed": None, "variation_strength": 0.0}),
        (("--seed-variance", "0"), {"seed_variance": 0.0, "seed_variance_share": 0.5}),
        (("--system-prompt", ""), {"system_prompt": ""}),
        ((), {"dype": "vision_yarn", "dype_base_resolution": 32, "dype_scale": 1.5, "dype_start_sigma": 0.5}),
        (("--dype", "ntk"), {"dype": "ntk", "dype_scale": 1.5, "dype_start_sigma": 1.0}),
        (("--dype", "off"), {"dype": "off", "dype_scale": 2.0, "dype_start_sigma": 1.0, "dype_base_resolution": 1024}),
        (("--sigmas", "1,0.6,0.2"), {"sigmas": (1.0, 0.6, 0.2), "num_inference_steps": 3, "slg_layers": (1, 2)}),
        (("--template", "portrait"), {"system_prompt": Templates().find("portrait").system}),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, tuple) else None,
)
def test_a_flag_takes_what_hangs_on_it_along(
    flags: tuple[str, ...], expected: dict[str, Any], drawn: None, repeat: Repeat, tmp_path: Path
) -> None:
    assert repeat("--from", "a.png", *flags, "--output", "b.png") == (0, "")
    found = read_parameters(tmp_path / "b.png")
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--nag-tau", "4"), {"nag_scale": 5.0, "nag_tau": 4.0, "nag_alpha": 0.5, "nag_sigma_end": 0.4}),
        (("--nag", "0"), {"nag_scale": 0.0, "nag_tau": 2.5, "nag_alpha": 0.25, "nag_sigma_end": 0.0}),
        (("--guidance", "2"), {"guidance_scale": 2.0, "nag_scale": 0.0, "nag_alpha": 0.25, "negative_prompt": "red"}),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, tuple) else None,
)
def test_guidance_inside_attention(
    flags: tuple[str, ...], expected: dict[str, Any], repeat: Repeat, tmp_path: Path
) -> None:
    asked = ("--nag", "5", "--nag-tau", "3", "--nag-alpha", "0.5", "--nag-sigma-end", "0.4", "--negative", "red")
    size = ("--steps", "2", "--height", "64", "--width", "64", "--seed", "3", "--guidance", "0")
    assert repeat("a red star", *asked, *size, "--output", "a.png") == (0, "")
    code, error = repeat("--from", "a.png", *flags, "--output", "b.png")
    assert code == 0, error
    found = read_parameters(tmp_path / "b.png")
    assert {name: getattr(found, name) for name in expected} == expected


def test_levels_of_ones_own_come_and_go() -> None:
    kept = dict.fromkeys(("slg_scale", "guidance_scale"), 0.0) | {"guidance_variant": "cfg", "sigmas": (1.0, 0.5)}
    kept |= {"num_inference_steps": 2, "sigma_shape": "linear"}
    assert "sigmas" not in without_replaced(kept, {"num_inference_steps": 4})
    assert "sigmas" not in without_replaced(kept, {"passes": "0.5x4,1.0x4"})
    passed = {"passes": "0.5x4,1.0x4", "upscale": "bicubic", "seed": 1}
    for single in ({"num_inference_steps": 4}, {"sigmas": [1.0]}):
        assert without_replaced(passed, single) == {"seed": 1}
        assert with_configured(single, passed) == single | {"seed": 1}, "as from a configuration"
    assert {"num_inference_steps", "sigma_shape"} & set(without_replaced(kept, {"sigmas": [1.0]})) == set()


def test_latents_take_the_place_of_what_drew_them() -> None:
    kept = dict.fromkeys(("slg_scale", "guidance_scale"), 0.0) | {"guidance_variant": "cfg", "noise": "torch"}
    kept |= {"seed": 5, "variation_seed": 3, "variation_strength": 0.5}
    for other, seed in (({"sampler": "euler"}, None), ({"sampler": "lcm"}, 5), ({"seed_variance": 0.1}, 5)):
        for left in (
            without_replaced(kept | other, {"latents": object()}),
            with_configured({"latents": object()}, kept | other),
        ):
            assert (left.get("seed"), "noise" in left, "variation_seed" in left) == (seed, False, False)


@pytest.mark.parametrize("text", ["0-99999999999", "7-3", "-3", "3-x"])
def test_a_range_that_is_none_is_not_written_out(text: str) -> None:
    assert Wholes(limit="num_layers").read(text) == text
