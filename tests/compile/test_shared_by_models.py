"""What all models share: graphs whose spec is no part of their key are the same whatever else the spec says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from max.driver import CPU
from max.graph import DeviceRef
from max.graph import Module as GraphModule

from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.compile.registry import GRAPHS, made
from max_zimage.graphs.layers import text_of, trace
from max_zimage.graphs.model.transformer import TransformerSpec

SHARED = [name for name, entry in GRAPHS.items() if not entry.is_keyed]
LARGE = FULL_MODEL.transformer
SMALL = replace(LARGE, dim=256, num_layers=2, num_refiner_layers=1, num_heads=2, rope_theta=10_000.0)


def traced(name: str, transformer: TransformerSpec) -> str:
    module, types = made(name, replace(FULL_MODEL, transformer=transformer), "bfloat16", DeviceRef.from_device(CPU()))
    together = GraphModule()
    trace(module, types, name, together)
    return text_of(together)


def test_what_follows_from_types_alone_is_shared() -> None:
    assert {"guided_update", "keep_unmasked", "taylor_update", "taylor_step", "guidance", "positions"} <= set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_other_specs_make_the_same_graph(name: str) -> None:
    assert traced(name, SMALL) == traced(name, LARGE)


def test_a_graph_with_a_spec_of_its_own_would_differ() -> None:
    assert traced("conditioning", SMALL) != traced("conditioning", replace(SMALL, norm_eps=1e-3))
