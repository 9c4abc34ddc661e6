"""The reference's transformer with some of its main layers removed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from tests.references.diffusers_runs import Pair


@contextmanager
def without_layers(pair: Pair, skipped: Collection[int]) -> Iterator[None]:
    """Leave layers out for a while."""
    transformer = pair.theirs.transformer
    whole = transformer.layers
    transformer.layers = torch.nn.ModuleList(layer for index, layer in enumerate(whole) if index not in skipped)
    try:
        yield
    finally:
        transformer.layers = whole
