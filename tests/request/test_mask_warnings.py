"""Masks that keep all of the image: the picture would look as if they were left aside, and a warning says why."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from max_zimage.errors import RequestWarning
from tests.request.test_request import make

LINE = np.zeros((128, 96), np.uint8)
LINE[:, 3:8] = 255  # between two corners of latents
IMAGE = np.zeros((128, 96, 3), np.uint8)
NARROW = np.zeros((128, 89, 3), np.uint8)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"mask_image": np.zeros_like(LINE)}, "mask_image has nothing drawn anew: it is black all over, and white is"),
        ({"mask_image": np.zeros_like(LINE), "soft_mask": True}, "it is black all over"),
        (
            {"mask_image": LINE},
            "of 8x8 pixels the one at the upper left counts, and none of those is 128 or more; make white",
        ),
        ({"mask_image": np.ones_like(LINE)}, "none of those is 128 or more"),  # of 0 and 1, as float masks are
        ({"mask_image": np.full_like(LINE, 127)}, "parts at least 8 pixels wide, or set soft_mask"),
        ({"image": NARROW, "outpaint": (0, 0, 7, 0)}, "none of those is 128 or more; add at least 8 pixels"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mask_that_keeps_everything_is_said(asked: dict[str, Any], says: str) -> None:
    with pytest.warns(RequestWarning) as caught:
        make(**{"image": IMAGE} | asked)
    assert says in str(caught[0].message)


@pytest.mark.parametrize(
    "asked",
    [
        {"mask_image": np.full_like(LINE, 128)},
        {"mask_image": LINE, "soft_mask": True},
        {"mask_image": np.roll(LINE, 1, axis=1)},
        {"image": NARROW[:, :88], "outpaint": (0, 0, 8, 0)},
        {},
    ],
    ids=lambda asked: "-".join(asked),
)
def test_others_are_not(asked: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(**{"image": IMAGE} | asked)
