"""The callback of diffusers, between two steps: what it is given, and what it may change.

Reference: diffusers pipelines/z_image/pipeline_z_image.py, callback_on_step_end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from max_zimage.pipeline.stages import unpacked

StepHook = Callable[[int, float, Buffer], Buffer | None]
"""Called after each step with its number, its timestep in [0, 1000] and the packed latents; may return others."""

FloatArray = npt.NDArray[np.float32]

StepCallback = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]
"""Called as callback(pipeline, step, timestep, {"latents": ...}); see `step_hook`."""

_NAME = "callback_on_step_end"


def step_hook(
    pipeline: object,
    callback: StepCallback,
    *,
    sides: Callable[[int], tuple[int, int]],
    pack: Callable[[npt.NDArray[np.float32]], Buffer],
) -> StepHook:
    """Turn diffusers' callback into one over packed latents; only here do latents leave the device during the loop.

    The callback gets the latents as float32 [pictures, channels, height/8, width/8]. It may change them in place, or
    return others of the same kind under their name; what it returns comes first.

    Args:
        pipeline: What the callback is called with.
        callback: The callback.
        sides: Height and width of a picture in tokens, after a step.
        pack: Brings latents of the callback's form back to the device, packed.

    Returns:
        The hook. It raises a ValueError or a TypeError where the callback leaves something else behind.
    """

    def on_step(index: int, timestep: float, latents: Buffer) -> Buffer | None:
        given = unpacked(latents, *sides(index))
        before = given.copy()
        returned = callback(pipeline, index, timestep, {"latents": given})
        changed = _checked(_latents_of(returned, given, index), before, index)
        if changed.tobytes() == before.tobytes():
            return None
        return pack(changed)

    return on_step


def _latents_of(returned: object, given: FloatArray, step: int) -> object:
    """What the callback leaves behind: the latents it returned, or else those it was given."""
    if returned is None:
        return given
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"{_NAME}, step {step}: the callback must return None or a dict, got {type(returned).__name__}; return "
            '{"latents": ...}, or change the latents in place'
        )
    unknown = [str(name) for name in returned if name != "latents"]
    if unknown:
        raise ValueError(
            f"{_NAME}, step {step}: the callback may return latents alone, got {', '.join(unknown)}: nothing else can "
            "be changed between steps; leave it out"
        )
    found = returned.get("latents")
    return given if found is None else found


def _checked(value: object, before: FloatArray, step: int) -> FloatArray:
    """The latents as an array, if they can take the place of those of the step."""
    where = f"{_NAME}, step {step}: the callback must return"
    try:
        latents = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor with a gradient, on a GPU, or of bfloat16
        raise ValueError(
            f"{where} latents as a float32 numpy array or torch tensor on the CPU, got {type(value).__name__}: {error}"
        ) from error
    if latents.shape != before.shape:
        raise ValueError(f"{where} latents of shape {list(before.shape)}, got {list(latents.shape)}")
    if latents.dtype != np.float32:
        raise ValueError(
            f"{where} float32 latents, got {latents.dtype}; convert them with .astype(numpy.float32) or .float()"
        )
    # What was not finite before is no fault of the callback's, and is found at the end.
    bad = int((~np.isfinite(latents)).sum()) if np.isfinite(before).all() else 0
    if bad:
        raise ValueError(f"{where} finite latents, got {bad} of {latents.size} numbers that are not")
    return np.ascontiguousarray(latents)
