"""A request sent through its wire form is the request that was sent, to the last bit."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from max_zimage.errors import RequestError
from max_zimage.request import wire
from max_zimage.request.fields import ROWS
from max_zimage.request.guidance_fields import MAX_GUIDANCE
from max_zimage.request.request import GenerationRequest
from max_zimage.request.wire import WireError
from max_zimage.sampling.ranges import MAX_SEED, MAX_SHIFT, MIN_SHIFT
from max_zimage.sampling.schedule import ScheduleSpec
from tests.request.test_request import LIMITS, features, make

SPEC = ScheduleSpec(shift=3.0, num_train_timesteps=1000)


def assert_equal(one: GenerationRequest, other: GenerationRequest) -> None:
    for field in dataclasses.fields(GenerationRequest):
        ours, theirs = (getattr(request, field.name) for request in (one, other))
        if ROWS_BY_ATTRIBUTE[field.name].kind.is_array and ours is not None:
            assert type(ours) is type(theirs)
            pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
            for array, again in pairs:
                assert (array.dtype, array.tobytes()) == (again.dtype, again.tobytes())
            continue
        assert (type(ours), ours) == (type(theirs), theirs), field.name
        for number, again in zip(floats(ours), floats(theirs), strict=True):
            assert number.hex() == again.hex(), field.name


def floats(value: object) -> list[float]:
    values = value if isinstance(value, tuple) else (value,)
    return [each for each in values if isinstance(each, float)]


ROWS_BY_ATTRIBUTE = {row.attribute: row for row in ROWS.values()}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
IMAGE = st.builds(
    lambda seed: np.random.default_rng(seed).integers(0, 256, (128, 96, 3), np.uint8), st.integers(0, 2**32)
)
CACHES = st.sampled_from(["off", "taylorseer:warmup_steps=1", "taylorseer:cache_interval=3,max_order=2"]) | st.builds(
    lambda threshold: f"first_block:threshold={threshold!r}", st.floats(1e-30, 1e30)
)
LEVELS = st.lists(st.floats(1e-30, 1.0), min_size=1, max_size=9, unique=True).map(lambda found: sorted(found)[::-1])
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "prompt": TEXT | st.lists(TEXT, min_size=1, max_size=3),
        "negative_prompt": TEXT,
        "height": st.integers(1, 512).map(lambda rows: 16 * rows),
        "width": st.integers(1, 512).map(lambda columns: 16 * columns),
        "num_inference_steps": st.integers(1, 1000),
        "sigmas": LEVELS,
        "shift": st.floats(MIN_SHIFT, MAX_SHIFT),
        "dynamic_shift": st.booleans(),
        "shift_terminal": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "guidance_scale": st.floats(0, MAX_GUIDANCE),
        "cfg_normalization": st.booleans() | st.floats(0, 1e30),
        "cfg_truncation": st.floats(0, allow_infinity=False),
        "num_images_per_prompt": st.integers(1, 64),
        "seed": st.integers(0, MAX_SEED),
        "max_sequence_length": st.integers(1, 1504),
        "hidden_layer": st.integers(-37, 36) | st.dictionaries(st.integers(-37, -1), st.floats(0, 1), max_size=3),
        "image": IMAGE,
        "strength": st.floats(0, 1, exclude_min=True),
        "resize": st.booleans(),
        "step_cache": CACHES,
        "output_type": st.sampled_from(["pil", "np", "latent"]),
    },
)


@settings(max_examples=200, deadline=None)
@given(ARGUMENTS)
def test_any_request_comes_back(arguments: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            request = make(**arguments)
    except RequestError:  # steps beside levels, sizes beside an image and so on
        return
    text = wire.to_text(request)
    assert_equal(wire.of_text(text, **wire.arrays_of(request)), request)
    assert wire.to_text(wire.of_text(text)) == text


def test_what_is_not_json_travels_beside() -> None:
    latents = np.random.default_rng(1).standard_normal((1, 16, 16, 12)).astype(np.float32)
    request = make(prompt=None, prompt_embeds=features(3), negative_prompt_embeds=features(5), latents=latents)
    assert not set(wire.to_wire(request)) & set(wire.arrays_of(request))
    assert set(wire.arrays_of(request)) == {"latents", "prompt_embeds", "negative_prompt_embeds"}
    assert_equal(wire.of_text(wire.to_text(request), **wire.arrays_of(request)), request)
    assert request.seed is None
    assert wire.of_text(wire.to_text(request)).latents is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"height": None}, "height: must not be null"),
        ({"height": 128.0}, "height: must be int, got 128.0"),
        ({"height": True}, "height: must be int, got True"),
        ({"guidance_scale": "2"}, "guidance_scale: must be a number, got '2'"),
        ({"guidance_scale": math.nan}, "guidance_scale: must be a number, got nan"),
        ({"guidance_scale": 10**400}, "guidance_scale: must be a number, got 1000"),
        ({"prompts": "x"}, "prompts: must be a list of strings, got 'x'"),
        ({"sigmas": [1, "x"]}, "sigmas: must be a number, got 'x'"),
        ({"step_cache": "teacache"}, "step_cache: a step cache is off"),
        ({"hidden_layer": -2}, "hidden_layer: must be str, got -2"),
        ({"hidden_layer": "-2:nan"}, "hidden_layer: must be layers with their weights, got '-2:nan'"),
        ({"hidden_layer": "[]"}, "hidden_layer: must be layers"),
        ({"output_type": "jpeg"}, "output_type: output_type must be one of"),
        ({"fuzziness": "euler"}, "fuzziness is unknown"),
    ],
)
def test_another_object_is_refused(changes: dict[str, object], says: str) -> None:
    fields = wire.to_wire(make()) | changes
    with pytest.raises(WireError) as error:
        wire.of_wire(fields)
    assert says in str(error.value)


def test_a_missing_field_and_an_array_that_is_none_are_refused() -> None:
    fields = wire.to_wire(make())
    del fields["seed"]
    with pytest.raises(WireError, match="seed is missing; noise is unknown"):
        wire.of_wire(fields, noise=np.zeros(1))
    for text in ("", "[]", "{", "null"):
        with pytest.raises(WireError, match="this is no request"):
            wire.of_text(text)


def test_whole_numbers_of_other_writers_are_floats() -> None:
    fields = json.loads(wire.to_text(make(guidance_scale=2.0))) | {"guidance_scale": 2}
    assert type(wire.of_wire(fields).guidance_scale) is float


def key(**arguments: Any) -> str:
    request = make(**arguments)
    return wire.sharing_key(request, request.schedule(SPEC))


def test_requests_share_a_batch_where_every_step_is_the_same() -> None:
    image = np.zeros((128, 96, 3), np.uint8)
    same: list[dict[str, Any]] = [{}, {"prompt": "other", "seed": 3}, {"shift": 3.0}, {"num_images_per_prompt": 2}]
    same += [{"negative_prompt": "x"}, {"image": image, "strength": 1.0}, {"step_cache": "off"}]
    same += [{"max_sequence_length": 7}]
    assert len({key(**arguments) for arguments in same}) == 1
    others: list[dict[str, Any]] = [{"height": 256}, {"width": 112}, {"num_inference_steps": 9}, {"shift": 4.0}]
    others += [{"guidance_scale": 0.0}, {"cfg_normalization": 1.0}, {"cfg_truncation": 0.5}, {"sigmas": [1.0, 0.5]}]
    others += [{"step_cache": "taylorseer:warmup_steps=1"}, {"image": image}]
    assert len({key(**arguments) for arguments in [{}, *others]}) == 1 + len(others)
    assert key(image=image, strength=0.6) == key(image=image, strength=0.61)
    assert LIMITS.max_steps == 1000
