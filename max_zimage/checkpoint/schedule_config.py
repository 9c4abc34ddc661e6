"""A scheduler's configuration, the contents of `scheduler/scheduler_config.json`, as the spec of a schedule.

Reference: diffusers schedulers/scheduling_flow_match_euler_discrete.py, whose defaults stand for absent keys; the shift
that grows with the picture takes those of pipelines/z_image/pipeline_z_image.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from max_zimage.checkpoint.config_reader import Config, Reader
from max_zimage.sampling.dynamic_shift import DynamicShift
from max_zimage.sampling.names import DEFAULT_SAMPLER, DEFAULT_SHAPE
from max_zimage.sampling.ranges import MAX_SHIFT, MIN_SHIFT
from max_zimage.sampling.schedule import ScheduleSpec

_ENDS = DynamicShift()
_DEFAULTS: Mapping[str, object] = {
    "use_dynamic_shifting": False,
    "base_image_seq_len": _ENDS.base_tokens,
    "max_image_seq_len": _ENDS.max_tokens,
    "base_shift": _ENDS.base,
    "max_shift": _ENDS.max,
    "time_shift_type": _ENDS.kind,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


def schedule_spec(config: Config) -> ScheduleSpec:
    """Read a scheduler's configuration.

    Raises:
        ConfigError: With every missing, unknown or unsupported key.
    """
    given = {name: value for name, value in config.items() if value is not None or name not in _DEFAULTS}
    read = Reader("scheduler", {**_DEFAULTS, **given})
    # All keys before anything is made of them, so that what is wrong with one hides no other.
    shift, train = read.within("shift", MIN_SHIFT, MAX_SHIFT), read.count("num_train_timesteps")
    terminal = read.within("shift_terminal", 0.0, 1.0) if config.get("shift_terminal") else None  # 0 is none
    read.known.add("shift_terminal")
    shape, sampler = _shape(read), "euler_stochastic" if read.switch("stochastic_sampling") else DEFAULT_SAMPLER
    dynamic, is_dynamic = _dynamic_shift(read), read.switch("use_dynamic_shifting")
    return read.build(
        lambda: ScheduleSpec(
            shift=shift,
            num_train_timesteps=train,
            dynamic=dynamic,
            is_dynamic=is_dynamic,
            terminal=terminal,
            shape=shape,
            sampler=sampler,
        )
    )


def _dynamic_shift(read: Reader) -> DynamicShift:
    """The ends of a shift by the picture's size, which a request may ask for where the checkpoint does not."""
    tokens = read.count("base_image_seq_len"), read.count("max_image_seq_len")
    ends = read.number("base_shift"), read.number("max_shift")
    is_linear = read.one_of("time_shift_type", ("exponential", "linear")) == "linear"
    kind: Literal["exponential", "linear"] = "linear" if is_linear else "exponential"
    return DynamicShift(base_tokens=tokens[0], max_tokens=tokens[1], base=ends[0], max=ends[1], kind=kind)


def _shape(read: Reader) -> str:
    shapes = ("karras", "exponential", "beta")
    asked = [shape for shape in shapes if read.switch(f"use_{shape}_sigmas")]
    if len(asked) > 1:
        read.problem(f"only one of {', '.join(f'use_{shape}_sigmas' for shape in asked)} may be true; keep one")
    return asked[0] if asked else DEFAULT_SHAPE
