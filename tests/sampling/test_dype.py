"""Extrapolated positions: frequencies, magnitudes and tables against written-out numbers and the formulas once more."""

from __future__ import annotations

from itertools import pairwise, product
from typing import get_args

import numpy as np
import pytest

from max_zimage.request.dype_fields import DYPE_METHODS
from max_zimage.sampling.positions import RopeSpec, axis_table, sequence_ids, sequence_rope
from max_zimage.sampling.positions.dype import Dype, Method, axis_tables, frequencies, magnitude
from tests.references import extrapolated

DIM, THETA = 48, 256.0
SPEC = RopeSpec(axes_dims=(32, 48, 48), axes_lens=(1536, 512, 512), theta=THETA)
VISION = Dype(method="vision_yarn")
# (whole, local, noise level): frequency as a share of the plain one, pairs 0 to 13; later pairs equal pair 13.
SHARES = {
    (2, 2, 1.0): ".9941 .9766 .9481 .9091 .8601 .8346 .8098 .7858 .7100 .6439 .5871 .5393 .5",
    (2, 1, 1.0): ".9941 .9766 .9481 .9091 .8601 .8346 .8098 .7858 .8100 .8439 .8871 .9393 1",
    (1.5, 1.5, 1.0): ".9965 .9861 .9691 .9455 .9156 .8996 .8839 .8685 .8160 .7697 .7295 .6952 .6667",
    (4, 4, 1.0): ".9883 .9546 .9008 .8286 .7398 .6965 .6558 .6174 .5151 .4284 .3561 .2970 .25",
    (8, 8, 1.0): ".9827 .9338 .8575 .7572 .6363 .5813 .5311 .4852 .3796 .2929 .2230 .1676 .125",
    (2, 2, 0.5): "1 1 1 1 .972 .9338 .8859 .8286 .7624 .6199 .5 .5 .5",
    (4, 4, 0.5): "1 1 1 1 .948 .8786 .7935 .6939 .5813 .3987 .25 .25 .25",
    (2, 2, 0.0): "1 1 1 1 1 1 1 1 1 1 .5 .5 .5",
}
RANGES = {1.0: (8, 13, 0, 5), 0.75: (8, 12, 0, 7), 0.5: (9, 11, 4, 9), 0.3: (9, 11, 7, 10), 0.0: (10, 11, 10, 11)}
MAGNITUDES: dict[tuple[float, float], float] = {
    (2, 1.0): 1.069315,
    (2, 0.75): 1.038990,
    (2, 0.5): 1.017329,
    (2, 0.3): 1.006238,
    (2, 0.0): 1.0,
}
MAGNITUDES |= {(4, 1.0): 1.138629}
OTHERS = [
    Dype(method=method, scale=scale, exponent=exponent, start_sigma=start, base_resolution=base)
    for method, (scale, exponent, start, base) in product(
        get_args(Method), [(2, 2, 1, 1024), (0.5, 1, 0.6, 1024), (8, 3, 0.1, 256), (1, 0, 1, 128), (100, 1, 1, 16)]
    )
]


def found(dype: Dype, whole: float, local: float, sigma: float) -> np.ndarray:
    return frequencies(dype, dim=DIM, theta=THETA, local=local, whole=whole, sigma=sigma)


@pytest.mark.parametrize("case", SHARES, ids=str)
def test_frequencies_are_those_written_out(case: tuple[float, float, float]) -> None:
    whole, local, sigma = case
    expected = [1.0, *map(float, SHARES[case].split())]
    expected += expected[-1:] * (DIM // 2 - len(expected))
    base = THETA ** (-np.arange(0, DIM, 2) / DIM)
    np.testing.assert_allclose(found(VISION, whole, local, sigma) / base, expected, atol=6e-5)


@pytest.mark.parametrize("sigma", RANGES)
def test_ranges_are_those_written_out(sigma: float) -> None:
    """Of the formulas once more, with which frequencies are compared below."""
    ends = [extrapolated.pair_range(VISION, turns, sigma, DIM, THETA) for turns in ((1.25, 0.75), (16, 2))]
    assert (*ends[0], *ends[1]) == RANGES[sigma]


@pytest.mark.parametrize("case", MAGNITUDES, ids=str)
def test_magnitudes_are_those_written_out(case: tuple[float, float]) -> None:
    assert magnitude(VISION, *case) == pytest.approx(MAGNITUDES[case], abs=1e-6)


@pytest.mark.parametrize("dype", OTHERS, ids=str)
def test_all_methods_are_the_formulas(dype: Dype) -> None:
    for (whole, local), sigma in product([(1.0, 1.0), (1.25, 1.0), (2.0, 2.0), (8.0, 3.0)], np.linspace(0, 1, 21)):
        expected = [
            extrapolated.frequency(dype, pair, DIM, THETA, local, whole, float(sigma)) for pair in range(DIM // 2)
        ]
        np.testing.assert_allclose(found(dype, whole, local, float(sigma)), expected, rtol=1e-13)
        wanted = extrapolated.magnitude(dype, whole, float(sigma))
        assert magnitude(dype, whole, float(sigma)) == pytest.approx(wanted, rel=1e-14)


def test_a_larger_scale_moves_frequencies_further() -> None:
    """Also beyond the scale at which no pair turns as often as the range says; the reference turns around there."""
    moved = [found(Dype(method="vision_yarn", scale=scale), 2, 2, 1.0) for scale in (0.5, 1, 2, 3, 4, 8, 50)]
    # Slower pairs come nearer to the larger base meanwhile.
    assert all((after[:7] <= before[:7] + 1e-15).all() for before, after in pairwise(moved))
    assert (moved[-1][1:7] < 0.98 * moved[2][1:7]).all()


def test_methods_are_those_that_a_request_names() -> None:
    assert get_args(Method) == DYPE_METHODS


@pytest.mark.parametrize("method", get_args(Method))
def test_tables_turn_positions_by_their_frequencies(method: Method) -> None:
    dype, sigmas = Dype(method=method, base_resolution=128), np.asarray([1.0, 0.7, 0.25], np.float32)
    tables = axis_tables(SPEC, dype, 12, 40, sigmas)
    assert [table.shape for table in tables] == [(3, 12, 24, 2), (3, 40, 24, 2)]
    for table, local in zip(tables, (1.5, 5.0), strict=True):
        assert table.dtype == np.float32
        for each, sigma in zip(table, sigmas, strict=True):
            each_turns = [
                extrapolated.frequency(dype, pair, DIM, THETA, local, 5.0, float(sigma)) for pair in range(24)
            ]
            angles = np.outer(np.arange(len(each)), each_turns).astype(np.float32).astype(np.float64)
            expected = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
            expected *= extrapolated.magnitude(dype, 5.0, float(sigma))
            np.testing.assert_allclose(each, expected, rtol=0, atol=1e-7)


def test_without_noise_ntk_is_plain() -> None:
    rows, columns = axis_tables(SPEC, Dype(method="ntk"), 80, 128, np.zeros(1, np.float32))
    np.testing.assert_array_equal(rows[0], axis_table(SPEC, 1)[:80])
    np.testing.assert_array_equal(columns[0], axis_table(SPEC, 2)[:128])


@pytest.mark.parametrize("lengths", [(5,), (40, 3, 33)])
def test_ids_look_up_the_plain_tables(lengths: tuple[int, ...]) -> None:
    ids = sequence_ids(5, 7, lengths)
    looked_up = np.concatenate([axis_table(SPEC, axis)[ids[..., axis]] for axis in range(3)], axis=-2)
    np.testing.assert_array_equal(looked_up, sequence_rope(SPEC, 5, 7, lengths))


def test_a_picture_of_the_size_of_training_is_left_alone() -> None:
    assert not VISION.changes(64, 64)
    assert not VISION.changes(10, 64)
    assert VISION.changes(65, 10)


def test_axes_of_one_pair() -> None:
    spec = RopeSpec(axes_dims=(2, 2, 2), axes_lens=(64, 64, 64), theta=10.0)
    for method in get_args(Method):
        rows, columns = axis_tables(spec, Dype(method=method, base_resolution=64), 8, 9, np.ones(1, np.float32))
        assert np.isfinite(rows).all()
        assert np.isfinite(columns).all()
