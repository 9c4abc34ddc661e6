"""What a callback between two steps may change, against diffusers with the same callback; and what it may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.references.diffusers_runs import Call, Pair, as_torch
from tests.tolerances import PIXEL_SHARE

PROMPT = "a red star on a blue background"
CALL = Call(height=80, width=112, steps=4)
SIZE: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 4, "guidance_scale": 2.0, "seed": 7}

Callback = Callable[[Any, int, Any, dict[str, Any]], Any]


def in_place(pipeline: object, step: int, timestep: object, values: dict[str, Any]) -> dict[str, Any]:
    """Works on numpy's arrays and on torch's tensors."""
    if step == 1:
        values["latents"][:, 3:7] *= 0.5
        values["latents"][:, :, 2:6] += 0.25
    return {}


def another(pipeline: object, step: int, timestep: object, values: dict[str, Any]) -> dict[str, Any]:
    return {"latents": values["latents"] * 0.9} if step in (0, 3) else {}


def both(pipeline: object, step: int, timestep: object, values: dict[str, Any]) -> dict[str, Any]:
    """What is returned comes before what is changed in place."""
    other = values["latents"] * 0.5
    values["latents"] *= 2
    return {"latents": other} if step == 2 else {}


@pytest.mark.parametrize("callback", [in_place, another, both])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_pictures_are_those_of_diffusers_with_the_same_callback(
    callback: Callback, guidance: float, embedded: Pair
) -> None:
    call = Call(height=80, width=112, steps=4, guidance=guidance)
    ours = embedded.ours(**embedded.arguments(call), output_type="np", callback_on_step_end=callback)
    given = as_torch(embedded.arguments(call), embedded.theirs.dtype)
    embedded.theirs.scheduler.set_shift(embedded.theirs.scheduler.config.shift)
    theirs = embedded.theirs(**given, output_type="np", callback_on_step_end=callback).images
    difference = np.abs(np.asarray(ours).astype(int) - np.round(theirs * 255))
    assert np.mean(difference <= 1) >= PIXEL_SHARE
    plain = embedded.ours(**embedded.arguments(call), output_type="np")
    assert np.mean(np.abs(np.asarray(ours).astype(int) - np.asarray(plain)) <= 1) < 0.9


@pytest.mark.parametrize("cache", [None, "first_block:threshold=0.1", "taylorseer:cache_interval=3,warmup_steps=2"])
@pytest.mark.parametrize("result", [None, {}, {"latents": None}], ids=str)
def test_what_is_changed_in_place_is_as_good_as_returned(cache: str | None, result: object, embedded: Pair) -> None:
    arguments = {**SIZE, "num_inference_steps": 6, "step_cache": cache, "output_type": "latent"}

    def changes(pipeline: object, step: int, timestep: float, values: dict[str, Any]) -> Any:
        if step == 2:
            values["latents"] -= np.float32(0.5)
        return result

    def returns(pipeline: object, step: int, timestep: float, values: dict[str, Any]) -> Any:
        return {"latents": values["latents"] - np.float32(0.5)} if step == 2 else None

    changed = embedded.ours(PROMPT, callback_on_step_end=changes, **arguments)
    np.testing.assert_array_equal(changed, embedded.ours(PROMPT, callback_on_step_end=returns, **arguments))
    assert not np.array_equal(np.asarray(changed), np.asarray(embedded.ours(PROMPT, **arguments)))


def test_a_sign_of_zero_is_a_change_and_the_last_step_counts(embedded: Pair) -> None:
    def negative_zero(pipeline: object, step: int, timestep: float, values: dict[str, Any]) -> None:
        if step == 3:
            values["latents"][:] = -0.0

    made = embedded.ours(PROMPT, output_type="latent", callback_on_step_end=negative_zero, **SIZE)
    assert np.signbit(np.asarray(made)).all()


def test_tensors_of_torch_are_taken(embedded: Pair) -> None:
    def halves(values: dict[str, Any], kind: Callable[[Any], Any]) -> dict[str, Any]:
        return {"latents": kind(values["latents"] * np.float32(0.5))}

    first, second = (
        embedded.ours(
            PROMPT, output_type="latent", callback_on_step_end=lambda *given, kind=kind: halves(given[3], kind), **SIZE
        )
        for kind in (np.asarray, torch.from_numpy)
    )
    np.testing.assert_array_equal(first, second)


BAD: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "shape": (lambda it: {"latents": it[0]}, r"return latents of shape \[1, 16, 10, 14\], got \[16, 10, 14\]"),
    "dtype": (lambda it: {"latents": it.astype(np.float64)}, r"got float64; convert them with .astype\(numpy"),
    "list": (lambda it: {"latents": it.tolist()}, "float32 latents, got float64"),
    "bfloat16": (lambda it: {"latents": torch.from_numpy(it).bfloat16()}, "got Tensor: .*BFloat16"),
    "text": (lambda it: {"latents": "none"}, r"of shape \[1, 16, 10, 14\], got \[\]"),
    "NaN": (lambda it: {"latents": it * np.float32("nan")}, "finite latents, got 2240 of 2240 numbers that are not"),
    "infinity": (lambda it: it.__setitem__((0, 0, 0, 0), np.inf), "finite latents, got 1 of 2240 numbers"),
    "another name": (lambda it: {"latents": it, "prompt_embeds": it}, "may return latents alone, got prompt_embeds:"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_take_their_place(name: str, embedded: Pair) -> None:
    leaves, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        embedded.ours(PROMPT, callback_on_step_end=lambda _, step, time, values: leaves(values["latents"]), **SIZE)
    assert str(caught.value).startswith("callback_on_step_end, step 0: the callback m")


def test_a_result_that_is_no_dict(embedded: Pair) -> None:
    with pytest.raises(TypeError, match="must return None or a dict, got ndarray; return"):
        embedded.ours(PROMPT, callback_on_step_end=lambda _, step, time, values: values["latents"], **SIZE)
