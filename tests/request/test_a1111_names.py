"""Names of samplers and sigma shapes as AUTOMATIC1111's clients have them."""

from __future__ import annotations

import pytest

from max_zimage.request.a1111_names import SAMPLER_LABELS, SHAPE_LABELS, key_of, sampler_of, shape_of
from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES


def test_names_go_both_ways() -> None:
    assert list(SAMPLER_LABELS) == list(SAMPLERS)
    assert list(SHAPE_LABELS) == list(SIGMA_SHAPES)
    for name, label in SAMPLER_LABELS.items():
        assert sampler_of(label) == sampler_of(label.upper()) == sampler_of(key_of(label)) == (name, None)
        for shape, end in SHAPE_LABELS.items():
            assert sampler_of(f"{label} {end}") == (name, shape)
    for shape, label in SHAPE_LABELS.items():
        assert shape_of(label) == shape_of(label.upper()) == shape_of(key_of(label)) == shape


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Euler a", "euler_ancestral"),
        ("k_euler_a", "euler_ancestral"),
        ("k_dpmpp_2m", "comfy_dpmpp_2m"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde"),
        ("UniPC", "unipc"),
    ],
)
def test_names_of_a_sampler(label: str, name: str) -> None:
    assert sampler_of(label) == (name, None)


def test_what_is_no_name() -> None:
    assert shape_of("Automatic") is shape_of("") is None
    assert sampler_of("Euler Automatic") == ("euler", None)
    for label in ("", "DDIM", "Euler Kar", "DPM++ 3M SDE"):
        with pytest.raises(ValueError, match=r"no sampler is called .* there are .*Euler a"):
            sampler_of(label)
    with pytest.raises(ValueError, match=r"no scheduler is called 'Polyexponential' here; there are Automatic, Linear"):
        shape_of("Polyexponential")
