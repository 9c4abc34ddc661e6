"""Guidance as data: which branches take part when, and which blocks each has."""

from __future__ import annotations

import numpy as np
import pytest

from max_zimage.sampling import samplers
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Branch, cfg, combined, skip_layer
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
