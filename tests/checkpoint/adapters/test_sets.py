"""Sets of adapters: what changes nothing leaves everything as it is, and equal sets are equal in every respect."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from max_zimage.checkpoint.adapters import Adapter, AdapterError, added, open_adapter
from max_zimage.checkpoint.expand import transformer_names
from max_zimage.checkpoint.plan import ParameterRecipe, plan
from max_zimage.checkpoint.transforms.base import Transform
from tests.references.adapters import AB, factors, rows_of, source, specs, spelled, weight, written

MODULES = ("layers.0.attention.to_q", "layers.1.feed_forward.w2")
NAME = "layers.0.attention.to_q.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Adapter]:
    """Two of different ranks; the second changes one of the first one's modules, too."""
    folder = tmp_path_factory.mktemp("sets")
    first = written(folder / "first.safetensors", spelled(factors(rank=4, modules=MODULES), "transformer.", AB))
    second = factors(rank=2, seed=9, modules=(MODULES[0], "cap_embedder.1"))
    return first, written(folder / "second.safetensors", spelled(second, "lora_unet_", AB, underscored=True))


def recipes(*transforms: Transform) -> tuple[ParameterRecipe, ...]:
    return plan(transformer_names(specs().transformer), source(), transforms).recipes


def test_nothing_leaves_every_tensor(pair: tuple[Adapter, Adapter]) -> None:
    first, second = pair
    base = recipes()
    for adapters in (
        [],
        [(first, 0.0)],
        [(first, 1.0), (first, -1.0)],
        [(first, 0.5), (second, 0.0), (first, 0.25), (first, -0.75)],
    ):
        before = source()
        assert added(adapters, "transformer")(before) is before
        assert recipes(added(adapters, "transformer")) == base
    assert recipes(added([(first, 1.0)], "vae")) == base
    assert recipes(added([(first, 1.0)], "text_encoder")) == base


def test_equal_sets_make_equal_recipes(pair: tuple[Adapter, Adapter]) -> None:
    first, second = pair
    whole = recipes(added([(first, 0.5), (second, 2.0)], "transformer"))
    again = open_adapter(first.path, specs())
    for adapters in ([(second, 2.0), (first, 0.5)], [(again, 0.25), (second, 2.0), (first, 0.25)]):
        assert recipes(added(adapters, "transformer")) == whole
        assert len({*whole, *recipes(added(adapters, "transformer"))}) == len(whole)
    assert recipes(added([(first, 0.5), (second, 1.0)], "transformer")) != whole


def test_only_what_they_name_is_made_again(pair: tuple[Adapter, Adapter]) -> None:
    first, second = pair

    def changed(one: list[tuple[Adapter, float]], other: list[tuple[Adapter, float]]) -> set[str]:
        sets = [{*recipes(added(each, "transformer"))} for each in (one, other)]
        return {each.engine for each in sets[1] - sets[0]}

    qkv, w2, caption = "layers.0.attention.qkv.weight", "layers.1.feed_forward.w2.weight", "cap_embedder.linear.weight"
    assert changed([], [(first, 1.0)]) == {qkv, w2}
    assert changed([(first, 1.0)], [(second, 1.0)]) == {qkv, w2, caption}
    assert changed([(first, 1.0)], [(first, 1.0), (second, 1.0)]) == {qkv, caption}
    assert changed([(first, 1.0), (second, 1.0)], [(first, 1.0)]) == {qkv, caption}
    assert changed([(second, 1.0)], []) == {qkv, caption}


def test_deltas_are_summed_before_they_meet_the_weight(pair: tuple[Adapter, Adapter]) -> None:
    first, second = pair
    deltas = factors(rank=4, modules=MODULES).deltas(0.5), factors(rank=2, seed=9, modules=MODULES[:1]).deltas(-2.0)
    found = rows_of(NAME, (first, 0.5), (second, -2.0))
    assert np.array_equal(found, rows_of(NAME, (second, -2.0), (first, 0.5)))
    exact = weight(NAME) + deltas[0][MODULES[0]] + deltas[1][MODULES[0]]
    assert np.abs(found - exact).max() < 1e-6 * np.abs(exact).max()


def test_a_digest_is_the_contents(pair: tuple[Adapter, Adapter], tmp_path: Path) -> None:
    first, _ = pair
    content = first.path.read_bytes()
    assert first.digest == hashlib.sha256(content).hexdigest()
    assert first.name == "first"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(content)
    other = open_adapter(copy, specs())
    assert other.digest == first.digest
    assert added([(first, 1.0), (other, -1.0)], "transformer")(source()).tensors == source().tensors


def test_another_content_under_the_same_name_is_another_adapter(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    one = written(file, spelled(factors(rank=4, modules=MODULES), "", AB))
    before = recipes(added([(one, 1.0)], "transformer"))
    save_file(spelled(factors(rank=4, seed=5, modules=MODULES), "", AB), file)
    os.utime(file, ns=(0, 0))
    with pytest.raises(AdapterError, match=r"a\.safetensors was changed after it was opened; open it again"):
        recipes(added([(one, 1.0)], "transformer"))
    other = open_adapter(file, specs())
    assert other.digest != one.digest
    assert other != one
    assert recipes(added([(other, 1.0)], "transformer")) != before
    file.unlink()
    with pytest.raises(AdapterError, match=r"a\.safetensors cannot be read: No such file"):
        recipes(added([(other, 1.0)], "transformer"))
