"""A step on several devices beside the plain one, on simulated meshes of one CPU.

Three devices share tokens unevenly, whatever the length; two groups share branch rows, in odd number too, and a single
row; rows of unequal length hide their padding. The plain step is compared with diffusers in `test_parity_forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet
from max.engine import Model

from max_zimage.graphs.dims import FirstBlock
from tests.recording import RecordProperty
from tests.references.diffusers_runs import relative_l2
from tests.references.meshes import (
    PLAIN,
    SMALL,
    SPEC,
    Case,
    Variant,
    arguments,
    cached_name,
    compiled,
    compiled_predicts,
    compiled_with_cache,
    run,
    walk,
)
from tests.tolerances import MESHED_L2

CASES = {
    "one row": Case(image_tokens=64, captions=(20,), batch=1, guidance=0.0),
    "image padding": Case(image_tokens=35, captions=(31,), batch=1, guidance=0.0),
    "guided, of equal length": Case(image_tokens=48, captions=(33, 64), batch=1, guidance=4.0),
    "two pictures": Case(image_tokens=36, captions=(40, 60), batch=2, guidance=0.0),
    "guided, unequal": Case(image_tokens=35, captions=(70, 9), batch=1, guidance=4.0),
    "longer negative": Case(image_tokens=64, captions=(1, 100), batch=1, guidance=2.5),
    "two guided, all unequal": Case(image_tokens=36, captions=(12, 75, 40, 97), batch=2, guidance=4.0),
    "three rows": Case(image_tokens=36, captions=(12, 75, 40), batch=3, guidance=0.0),
}
FAST = [Variant(3, 1, True)]
"""One mesh, which is what a minute compiles."""
SMALLEST = [Variant(2, 1, True), Variant(4, 1, True), Variant(2, 2, True), Variant(4, 2, True)]
SLOW = [
    *(Variant(devices, 1, is_padded) for devices in (2, 4) for is_padded in (False, True)),
    *(Variant(devices, 2, is_padded) for devices in (2, 4) for is_padded in (False, True)),
    Variant(3, 1, False),
    Variant(3, 1, True),
    Variant(6, 2, True),
    Variant(8, 1, True),
]


@cache
def models(kind: str) -> dict[str, Model]:
    """Of "fast", "smallest", "slow" tests, and of first-block caching, "cached"."""
    if kind == "slow":
        return compiled(SLOW)
    return compiled_predicts({"fast": FAST, "smallest": SMALLEST, "cached": []}[kind], [3] if kind == "cached" else [])


@cache
def model_with_cache(devices: int, block: FirstBlock) -> Model:
    return compiled_with_cache(devices, block)


def cases_of(variants: Sequence[Variant]) -> list[ParameterSet]:
    """Rows of unequal length are for the graphs that tell them apart."""
    return [
        pytest.param(each, name, id=f"{each.name}-{name.replace(' ', '_').replace(',', '')}")
        for each in variants
        for name, case in CASES.items()
        if each.is_padded or case.is_full
    ]


def check(variant: Variant, name: str, record_property: RecordProperty, kind: str) -> None:
    found, given = models(kind), arguments(CASES[name], spec=SPEC if kind == "slow" else SMALL)
    ours, plain = run(found[variant.name], given), run(found[PLAIN], given)
    errors = {key: max(relative_l2(*rows) for rows in zip(ours[key], plain[key], strict=True)) for key in plain}
    record_property("relative_l2", errors["velocity"])
    assert max(errors.values()) <= MESHED_L2, errors


@pytest.mark.parametrize(("variant", "name"), cases_of(FAST))
def test_several_devices_compute_what_one_computes(
    variant: Variant, name: str, record_property: RecordProperty
) -> None:
    check(variant, name, record_property, "fast")


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "name"), cases_of(SMALLEST))
def test_other_meshes(variant: Variant, name: str, record_property: RecordProperty) -> None:
    check(variant, name, record_property, "smallest")


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "name"), cases_of(SLOW))
def test_whole_steps(variant: Variant, name: str, record_property: RecordProperty) -> None:
    """Guidance and update with them, and two main blocks."""
    check(variant, name, record_property, "slow")


@pytest.mark.slow
def test_a_cache_decides_for_all_devices() -> None:
    """As numpy decides on the whole residual; what a device finds of its own part would decide otherwise."""
    found, given = models("cached"), arguments(CASES["image padding"], spec=SMALL)
    computed = walk(found[cached_name(3)], given, "noise_refiner", 0.0)
    assert [each.computed for each in computed] == [1, 1, 1]
    assert relative_l2(computed[0].velocity, run(found[PLAIN], given)["velocity"]) <= MESHED_L2
    before, after = (each.first.astype(np.float64) for each in computed[:2])
    share = np.abs(after - before).mean() / np.abs(before).mean()
    parts = [
        np.abs(now - then).mean() / np.abs(then).mean()
        for now, then in zip(*(np.array_split(each, 3, axis=1) for each in (after, before)), strict=True)
    ]
    assert min(parts) < share * 0.999 < share * 1.001 < max(parts)
    for factor, expected in ((0.999, 1), (1.001, 0)):
        walked = walk(found[cached_name(3)], given, "noise_refiner", float(share * factor))
        assert [each.computed for each in walked[:2]] == [1, expected]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "block"), [(2, "noise_refiner"), (3, "noise_refiner"), (3, "layers"), (4, "layers")]
)
def test_a_cache_gives_what_it_gives_on_one_device(devices: int, block: FirstBlock) -> None:
    """Three evaluations: computed, reused or computed again by how far the latents have moved, for three thresholds."""
    one, several = (model_with_cache(each, block) for each in (1, devices))
    for longest in (0, 96):
        given = arguments(Case(image_tokens=35, captions=(40,), batch=1, guidance=0.0, longest=longest))
        decisions = []
        for threshold in (0.0, 0.02, 0.5):
            walked = [walk(model, given, block, threshold) for model in (one, several)]
            for plain, ours in zip(*walked, strict=True):
                assert ours.computed == plain.computed
                assert relative_l2(ours.velocity, plain.velocity) <= MESHED_L2
                assert relative_l2(ours.first, plain.first) <= MESHED_L2
            decisions.append([each.computed for each in walked[0]])
        assert decisions[0] == [1, 1, 1]
        assert decisions[-1] == [1, 0, 0]
