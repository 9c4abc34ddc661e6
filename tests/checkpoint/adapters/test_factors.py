"""Low-rank parts beside the matrices: their products are what the same adapters add to the packed weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from max.driver import Buffer

from max_zimage.checkpoint.adapters import added, open_adapter
from max_zimage.checkpoint.adapters.factors import Scaled, factors_of, why_not
from max_zimage.checkpoint.adapters.places import MATRICES
from max_zimage.checkpoint.config import ModelSpecs, model_specs
from max_zimage.checkpoint.expand import transformer_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.locate import CONFIG_FILES, read_config
from max_zimage.checkpoint.plan import plan
from max_zimage.embedded import PATH
from tests.references.loras import BLOCKS, write_adapter, write_wide

SPECS: ModelSpecs = model_specs(**{name: read_config(PATH, name) for name in CONFIG_FILES})


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Scaled]:
    """Of diffusers' names and of the original's; together more than a panel of ranks, and not all positive."""
    folder = tmp_path_factory.mktemp("factors")
    files = write_adapter(folder / "one.safetensors", BLOCKS).path, write_wide(folder / "wide.safetensors")
    return [(open_adapter(file, SPECS), scale) for file, scale in zip(files, (0.5, -1.0), strict=True)]


def matrix(packed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[panels, inputs, 32] -> [outputs, inputs]."""
    return packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])


def test_products_are_what_is_added_to_the_weights(adapters: list[Scaled]) -> None:
    assert why_not([adapter for adapter, _ in adapters]) is None
    source, table = (
        open_source(list((PATH / "transformer").glob("*.safetensors"))),
        transformer_names(SPECS.transformer),
    )
    base, adapted = (
        load(plan(table, source, transforms), "float32", to_pack=True)
        for transforms in ((), (added(adapters, "transformer"),))
    )
    found, changed = factors_of([[], adapters], SPECS.transformer, "float32"), 0
    for block in range(SPECS.transformer.num_blocks):
        layer = block - SPECS.transformer.num_refiner_layers
        name = f"layers.{layer}" if layer >= 0 else f"noise_refiner.{block}"
        for parameter, field in MATRICES.items():
            down, up = (found._asdict()[f"{field}_{side}"].to_numpy() for side in ("down", "up"))
            engine, at = f"{name}.{parameter}", SPECS.transformer.num_blocks + block
            expected = matrix(adapted[engine].to_numpy()) - matrix(base[engine].to_numpy())
            np.testing.assert_allclose(matrix(up[at]) @ matrix(down[at]), expected, atol=1e-6)
            assert not up[block].any()
            changed += bool(np.abs(expected).max() > 0.001)
    assert changed == 8


def test_in_bfloat16_they_are_those_of_float32_rounded(adapters: list[Scaled]) -> None:
    sets = [adapters, []]
    for exact, rounded in zip(
        *(factors_of(sets, SPECS.transformer, dtype) for dtype in ("float32", "bfloat16")), strict=True
    ):
        blocks, panels, units, numbers = map(int, exact.shape)
        pairs = as_torch(exact).reshape(blocks, panels, units // 2, 2, numbers).transpose(-1, -2)
        expected = pairs.reshape(blocks, panels, units // 2, 2 * numbers).bfloat16()
        assert torch.equal(as_torch(rounded), expected)


def as_torch(values: Buffer) -> torch.Tensor:
    return torch.from_dlpack(values)


def test_a_file_that_was_changed(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "one.safetensors", BLOCKS).path
    adapter = open_adapter(file, SPECS)
    write_adapter(file, BLOCKS[:1])
    with pytest.raises(ValueError, match="was changed after it was opened"):
        factors_of([[(adapter, 1.0)]], SPECS.transformer, "float32")
