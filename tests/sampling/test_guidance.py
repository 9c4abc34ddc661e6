"""Guidance as data: which branches take part when, and which blocks each has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from max_zimage.sampling import samplers
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Branch, Guidance, cfg, combined, nag, skip_layer
from max_zimage.sampling.names import SAMPLERS
from max_zimage.sampling.schedule import ScheduleSpec, schedule


def plan(steps: int = 8, sampler: str = "euler") -> Evaluations:
    return samplers.plan(sampler, schedule(ScheduleSpec(shift=3.0, num_train_timesteps=1000), steps=steps))


def skip(evaluated: Evaluations, **change: object) -> Branch:
    given = {"scale": 2.5, "layers": [1, 2], "start": 0.05, "stop": 0.5} | change
    return skip_layer.branch(evaluated, **given)  # type: ignore[arg-type]


def test_branches_take_part_when_they_count() -> None:
    found = combined(cfg.guidance(plan(), 4.0, 0.2, 1.0), [skip(plan())])
    assert [found.active(step) for step in range(8)] == [(0, 1), *[(0, 1, 2)] * 3, *[(0,)] * 4]
    np.testing.assert_array_equal(found.limits, [1, 1, 1, 1, 0, 0, 0, 0])


def attention(evaluated: Evaluations, **change: float) -> Guidance:
    given = {"scale": 5.0, "tau": 2.5, "alpha": 0.25, "sigma_end": 0.0} | change
    return replace(cfg.guidance(evaluated, 0.0, 1.0, 0.0), nag=nag.nag(evaluated, **given))


def test_guidance_inside_attention_has_a_negative_branch_and_no_scale() -> None:
    found = attention(plan())
    assert found.has_negative
    assert [found.active(step) for step in range(8)] == [(0, 1)] * 8
    np.testing.assert_array_equal(found.negative, np.zeros(8))


@pytest.mark.parametrize(("level", "count"), [(0.75, 5), (0.76, 4), (1.0, 1)])
def test_guidance_inside_attention_ends_below_a_noise_level(level: float, count: int) -> None:
    """At shift 3 the levels of 8 steps are 1, 0.955, 0.9, 0.833, 0.75, ...; a sampler's evaluations go by their own."""
    found = attention(plan(), sigma_end=level)
    assert [found.is_paired(step) for step in range(8)] == [True] * count + [False] * (8 - count)
    heun = plan(sampler="heun")
    assert attention(heun, sigma_end=level).active(0) == (0, 1)
    np.testing.assert_array_equal(
        [attention(heun, sigma_end=level).is_paired(index) for index in range(heun.count)],
        heun.sigmas >= np.float32(level),
    )


def test_guidance_inside_attention_that_never_acts_has_one_branch() -> None:
    later = samplers.plan("euler", schedule(ScheduleSpec(shift=1.0, num_train_timesteps=1000), sigmas=[0.5, 0.2]))
    found = attention(later, sigma_end=0.6)
    assert not found.has_negative
    assert [found.active(step) for step in range(2)] == [(0,)] * 2


@pytest.mark.parametrize("wrong", [{"scale": 0.5}, {"tau": 0.9}, {"alpha": 0.0}, {"alpha": 1.1}, {"sigma_end": -0.1}])
def test_numbers_out_of_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="takes a scale and a tau of at least 1"):
        attention(plan(), **wrong)


def test_without_guidance_there_is_one_branch() -> None:
    found = cfg.guidance(plan(), 0.0, 1.0, 1.0)
    assert not found.has_negative
    assert [found.active(step) for step in range(8)] == [(0,)] * 8


@pytest.mark.parametrize(("steps", "window"), [(9, [1, 2, 3, 4]), (8, [1, 2, 3]), (4, [1]), (1, [])])
def test_the_window_counts_steps(steps: int, window: list[int]) -> None:
    for sampler in SAMPLERS:
        evaluated = plan(steps, sampler)
        assert sorted(set(evaluated.steps[skip(evaluated).scales > 0])) == window


def test_blocks_that_a_branch_leaves_out() -> None:
    found = combined(cfg.guidance(plan(), 0.0, 1.0, 0.0), [skip(plan()), skip(plan(), layers=[0, 0])])
    np.testing.assert_array_equal(found.kept(2, 4), [[1] * 6, [1, 1, 1, 0, 0, 1], [1, 1, 0, 1, 1, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "at least one layer"),
        ({"scale": 0.0}, "above 0, got 0"),
        ({"scale": float("nan")}, "above 0, got nan"),
        ({"start": 0.5}, "start before it stops"),
        ({"stop": 1.5}, "from 0 to 1"),
    ],
)
def test_what_leaves_nothing_out_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        skip(plan(), **change)


@pytest.mark.parametrize("layers", [[4], [-1], [0, 1, 2, 3]])
def test_layers_that_are_not_there_or_all_of_them_are_refused(layers: list[int]) -> None:
    found = combined(cfg.guidance(plan(), 0.0, 1.0, 0.0), [skip(plan(), layers=layers)])
    with pytest.raises(ValueError, match="must be some of 0 to 3"):
        found.kept(2, 4)


def test_scales_for_other_evaluations_are_refused() -> None:
    with pytest.raises(ValueError, match="for each of 8 evaluations, got 3"):
        combined(cfg.guidance(plan(), 0.0, 1.0, 0.0), [skip(plan(3))])
