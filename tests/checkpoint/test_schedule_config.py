"""What a scheduler's configuration makes of a schedule: shifts that grow, shapes, a last level, noise in between."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift

from max_zimage import ZImagePipeline
from max_zimage.checkpoint.config_reader import ConfigError
from max_zimage.checkpoint.schedule_config import schedule_spec
from max_zimage.request.configuration.idle import IDLE
from max_zimage.sampling.schedule import ScheduleSpec, schedule
from tests.references.checkpoints import copied

CONFIG: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
LEVELS = [1.0, 0.8, 0.55, 0.3, 0.125]
CHANGES: list[dict[str, Any]] = [
    {},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.7, "max_shift": 2.0},
    {"use_dynamic_shifting": True, "base_image_seq_len": 128, "max_image_seq_len": 9000, "shift_terminal": 0.05},
    {"shift_terminal": 0.02},
    {"shift_terminal": 0},
    {"shift_terminal": None, "time_shift_type": None},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True, "shift_terminal": 0.1},
    {"use_beta_sigmas": True, "use_dynamic_shifting": True},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change))
def test_levels_are_those_of_diffusers(change: dict[str, Any]) -> None:
    config = CONFIG | change
    known = {name: value for name, value in config.items() if name != "time_shift_type" or value}
    theirs = FlowMatchEulerDiscreteScheduler.from_config(known)
    names = {"base_image_seq_len": "base_seq_len", "max_image_seq_len": "max_seq_len"}
    names |= {name: name for name in ("base_shift", "max_shift")}
    mu = calculate_shift(2304, **{names[name]: value for name, value in known.items() if name in names})
    steps = 9
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).astype(np.float32), mu=mu)
    ours = schedule(schedule_spec(config), steps=steps, tokens=2304)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=4e-7 if "use_beta_sigmas" in change else 0)


def test_what_is_said_of_llm_dits_ends_of_a_shift_is_true() -> None:
    """`--dype-base-shift` does nothing: whether a shift grows, requests say; between which ends, the checkpoint."""
    config = CONFIG | {"base_shift": 0.6, "max_shift": 1.0}
    sizes = (256, 4096)
    for spec in (schedule_spec(config | {"use_dynamic_shifting": True}), asking(schedule_spec(config), True)):
        small, large = (schedule(spec, steps=4, tokens=tokens).shift for tokens in sizes)
        assert (small, large) == (pytest.approx(np.exp(0.6)), pytest.approx(np.exp(1.0)))
        assert {schedule(spec, steps=4, tokens=tokens, shift=2.0).shift for tokens in sizes} == {2.0}
    for spec in (schedule_spec(config), asking(schedule_spec(config | {"use_dynamic_shifting": True}), False)):
        assert {schedule(spec, steps=4, tokens=tokens).shift for tokens in sizes} == {3.0}
    (line,) = {each.line for each in IDLE if each.flag in ("--dype-base-shift", "--dype-max-shift")}
    assert "the checkpoint's (base_shift and max_shift of its scheduler); dynamic_shift says whether it grows" in line


def asking(spec: ScheduleSpec, is_dynamic: bool) -> ScheduleSpec:
    return replace(spec, is_dynamic=is_dynamic)


def test_stochastic_sampling_is_the_sampler_of_requests_that_name_none(tmp_path: Path) -> None:
    copied(tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()  # may be a link to the embedded model's
    path.write_text(json.dumps(content | {"stochastic_sampling": True, "use_karras_sigmas": True}), encoding="utf-8")
    defaults = ZImagePipeline.prepare(tmp_path / "model", device="cpu").sources.defaults
    assert (defaults.sampler, defaults.sigma_shape) == ("euler_stochastic", "karras")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"use_dynamic_shifting": "yes"}, 'use_dynamic_shifting must be true or false, got "yes"'),
        ({"use_karras_sigmas": 1}, "use_karras_sigmas must be true or false, got 1"),
        ({"stochastic_sampling": []}, "stochastic_sampling must be true or false"),
        ({"shift_terminal": 1.5}, "shift_terminal must be a number from 0 to 1, got 1.5"),
        ({"shift_terminal": 1.0}, "shift_terminal must be above 0 and below 1, got 1.0"),
        ({"time_shift_type": "cubic"}, 'time_shift_type must be "exponential" or "linear", got "cubic"'),
        ({"base_image_seq_len": 0}, "base_image_seq_len must be a whole number from 1"),
        ({"max_shift": "1"}, "max_shift must be a number that float32 holds"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "must differ, got 256 for both"),
        (
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            "only one of use_karras_sigmas, use_beta_sigmas may be true; keep one",
        ),
    ],
)
def test_what_makes_no_schedule_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schedule_spec(CONFIG | change)
    [problem] = caught.value.problems
    assert problem.startswith("scheduler/scheduler_config.json: ")
    assert says in problem
