"""The table of names at the real model's sizes, against the published numbers of parameters."""

from __future__ import annotations

from math import prod

import pytest

from max_zimage.checkpoint.config import text_encoder_spec, transformer_spec, vae_spec
from max_zimage.checkpoint.expand import ParameterTable, text_encoder_names, transformer_names, vae_names, weights
from tests.checkpoint.test_config import TEXT_ENCODER, TRANSFORMER, VAE

PUBLISHED = {
    # component: (tensors in the diffusers layout, numbers in them), without what is dropped by name
    "text_encoder": (text_encoder_names(text_encoder_spec(TEXT_ENCODER), 35), 397, 4_022_468_096 - 2560),
    "transformer": (transformer_names(transformer_spec(TRANSFORMER)), 521, 6_154_908_736),
    "vae": (vae_names(vae_spec(VAE)), 244, 83_819_683),
}


@pytest.mark.parametrize(("names", "tensors", "numbers"), PUBLISHED.values(), ids=PUBLISHED)
def test_counts_are_the_published_ones(names: ParameterTable, tensors: int, numbers: int) -> None:
    for naming in names.namings:
        for prefix in names.prefixes:
            written = weights(names, naming, prefix)
            parts = [part for weight in written for part in weight.parts]
            assert len({weight.engine for weight in written}) == len(written)
            assert len({part.name for part in parts}) == len(parts)
            assert all(part.name.startswith(prefix) for part in parts)
            assert sum(prod(part.shape) for part in parts) == numbers
            if naming == "diffusers":
                assert len(parts) == tensors


def test_the_layer_that_is_not_run() -> None:
    names = PUBLISHED["text_encoder"][0]
    unused = [weight for weight in weights(names, "diffusers", "model.") if weight.unused]
    assert sum(len(weight.parts) for weight in unused) == 11
    assert all(part.name.startswith("model.layers.35.") for weight in unused for part in weight.parts)
