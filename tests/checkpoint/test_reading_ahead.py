"""While a parameter is packed, the system reads the next one from the disk."""

from __future__ import annotations

import os

import pytest

from max_zimage.checkpoint.config import model_specs
from max_zimage.checkpoint.expand import transformer_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.locate import CONFIG_FILES, find_component_files, read_config
from max_zimage.checkpoint.plan import plan
from max_zimage.checkpoint.tensors import StoredTensor
from max_zimage.embedded import PATH


def test_the_next_parameter_is_read_while_one_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set[tuple[int, int]]()
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, count, __: asked.add((start, count)))
    specs = model_specs(**{component: read_config(PATH, component) for component in CONFIG_FILES})
    checked = plan(transformer_names(specs.transformer), open_source(find_component_files(PATH, "transformer")))
    load(checked, "bfloat16")
    assert not asked
    load(checked, "bfloat16", to_pack=True)
    parts = [part for each in checked.recipes[1:] for part in each.parts]
    stored = {(part.start, part.nbytes) for part in parts if isinstance(part, StoredTensor)}
    assert len(stored) == len(parts) > 20
    assert max(count for _, count in asked) <= 128 * 1024  # more than that may be left out by the system
    assert joined(asked) == joined(stored)


def joined(ranges: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for start, count in sorted(ranges):
        if found and start <= sum(found[-1]):
            first, length = found[-1]
            found[-1] = (first, max(length, start + count - first))
        else:
            found.append((start, count))
    return found
