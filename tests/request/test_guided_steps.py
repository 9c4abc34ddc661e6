"""Guidance that would be on in none of the steps that are taken, once the noise levels are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from max_zimage.errors import RequestError
from max_zimage.request.legs import legs_of
from max_zimage.sampling.schedule import ScheduleSpec
from tests.request.test_request import make

SPEC = ScheduleSpec(shift=3.0, num_train_timesteps=1000)
IMAGE: dict[str, Any] = {"image": np.zeros((128, 96, 3), np.uint8)}
STAR: dict[str, Any] = {"guidance_variant": "cfg_zero_star", "zero_init": True}
LATE: dict[str, Any] = {"guidance_interval": (0.5, 1.0)}
SKIPS: dict[str, Any] = {"slg": True, "slg_start": 0.0}


@pytest.mark.parametrize(
    "asked",
    [
        {"cfg_truncation": 0.0},  # the first step is at time 0
        {"cfg_truncation": 0.25, **LATE},  # the fifth of eight at a quarter
        {"cfg_truncation": 0.25, "strength": 0.5, **IMAGE},
        {"cfg_truncation": 0.0, "strength": 0.5, "guidance_scale": 0.0, **IMAGE},
        {"cfg_truncation": 0.2, "denoising_end": 0.5, **LATE},  # a part of the run says nothing of the others
        {"cfg_truncation": 0.0, "passes": "0.5x8,1.0x8:0.5"},  # on in the first pass
        STAR,
        STAR | IMAGE | {"strength": 0.5},
        STAR | LATE | SKIPS,
        STAR | {"passes": "0.5x8:guidance_scale=0,1.0x8:0.5"},
        STAR | {"progressive": 0.5},
    ],
    ids=lambda asked: "-".join(asked),
)
def test_guidance_that_is_on_somewhere(asked: dict[str, Any]) -> None:
    assert legs_of(make(**asked), SPEC)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"cfg_truncation": 0.2, **LATE},
            "cfg_truncation 0.2 is below the times of all steps with guidance, of which the first has 0.25; raise it, "
            "or set guidance_scale to 0",
        ),
        ({"cfg_truncation": 0.2, "strength": 0.5, **IMAGE}, "of which the first has 0.25"),
        ({"cfg_truncation": 0.1, "guidance_scale": [0.0] * 7 + [2.0]}, "of which the first has 0.7"),
        ({"cfg_truncation": 0.0, "sigmas": [0.5]}, "of which the first has 0.25"),
        (
            STAR | LATE,
            "zero_init is of guidance in the first evaluation, and it begins later; leave zero_init out, or let it "
            "begin with the first step",
        ),
        (STAR | {"guidance_scale": [0.0] + [2.0] * 7}, "zero_init is of guidance in the first evaluation"),
        (STAR | LATE | SKIPS | {"slg_start": 0.2}, "zero_init is of guidance in the first evaluation"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_guidance_that_would_be_on_nowhere(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        legs_of(make(**asked), SPEC)
    assert says in str(caught.value)
