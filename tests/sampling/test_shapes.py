"""Sigma shapes: levels that ComfyUI and RES4LYF have, quantiles of scipy, and what every shape keeps to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from max_zimage.sampling.names import SIGMA_SHAPES
from max_zimage.sampling.schedule import ScheduleSpec, schedule
from max_zimage.sampling.shapes import SHAPES, shaped
from max_zimage.sampling.shapes.beta_function import quantiles

EIGHT = {
    "linear": "1 .954545 .9 .833333 .75 .642857 .5 .3",
    "simple": "1 .954545 .9 .833333 .75 .642857 .5 .3",
    "sgm_uniform": "1 .954694 .900359 .833998 .751121 .644686 .502985 .305009",
    "normal": "1 .947543 .882788 .800837 .693793 .548046 .337972 .008929",
    "ddim_uniform": ".955338 .900958 .834516 .751497 .644812 .50266 .303828 .005976",
    "comfy_beta": "1 .980249 .933535 .859522 .750749 .596386 .392171 .155914",
    "beta57": "1 .960432 .885246 .776062 .62993 .446629 .243719 .071429",
    "comfy_karras": "1 .555413 .292276 .144143 .065655 .027069 .009813 .002994",
    "comfy_exponential": "1 .435978 .190077 .082869 .036129 .015752 .006867 .002994",
    "kl_optimal": "1 .798173 .629535 .483156 .351837 .230495 .115273 .002994",
    "linear_quadratic": "1 .99375 .9875 .98125 .975 .909375 .725 .421875",
    "bong_tangent": "1 .971344 .929423 .862888 .7443 .5 .213122 .069646",
    "karras": "1 .85229 .72369 .612095 .515587 .432426 .361038 .3",
    "exponential": "1 .841982 .708934 .59691 .502588 .42317 .356302 .3",
    "beta": "1 .950201 .848204 .718999 .581001 .451796 .349799 .3",
}
"""What the programs that the shapes come from make of 8 steps with shift 3, to 6 places."""

SPEC = ScheduleSpec(shift=3.0, num_train_timesteps=1000)


@pytest.mark.parametrize("shape", SIGMA_SHAPES)
def test_eight_levels(shape: str) -> None:
    expected = [float(level) for level in EIGHT[shape].split()]
    np.testing.assert_allclose(schedule(SPEC, steps=8, shape=shape).sigmas[:-1], expected, atol=6e-7)


@pytest.mark.parametrize("shape", SIGMA_SHAPES)
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_levels_fall_for_every_number_of_steps(shape: str, shift: float) -> None:
    spec, first = ScheduleSpec(shift=shift, num_train_timesteps=1000), "must begin at 1"
    refused = []
    for steps in range(1, 61):
        try:
            levels = schedule(spec, steps=steps, shape=shape).sigmas
        except ValueError as error:
            refused.append(steps)
            assert f"levels for {steps} steps; ask for" in str(error)
            continue
        assert len(levels) == steps + 1
        assert (np.diff(levels) < 0).all()
        assert levels[0] == 1 or shape == "ddim_uniform", first
        assert schedule(spec, steps=steps, shape=shape).noise_scale == float(levels[0])
    assert bool(refused) == (shape == "ddim_uniform")


def test_a_number_of_steps_that_a_shape_does_not_have_names_one_that_it_has() -> None:
    for shape, steps, found, near in (("ddim_uniform", 6, 7, 5), ("ddim_uniform", 30, 31, 27), ("beta57", 97, 96, 96)):
        even = np.ones(steps, np.float32)
        with pytest.raises(ValueError, match=f"{shape} has {found} levels for {steps} steps; ask for {near} steps or"):
            shaped(shape, even, 3.0)
        assert len(shaped(shape, even[:near], 3.0)) == near
    with pytest.raises(ValueError, match=r"must be one of linear, karras, .*, got 'cubic'"):
        shaped("cubic", np.ones(3, np.float32), 3.0)


def test_every_name_is_a_shape() -> None:
    assert tuple(SHAPES) == SIGMA_SHAPES


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.7), (2.0, 5.0)])
def test_quantiles_are_those_of_scipy(a: float, b: float) -> None:
    shares = np.concatenate([np.linspace(0, 1, 257), [1e-9, 1e-4, 1 - 1e-9]])
    np.testing.assert_allclose(quantiles(shares, a, b), beta.ppf(shares, a, b), atol=1e-12)
