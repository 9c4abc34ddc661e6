"""What `max-zimage profile --component` is about: one component on random inputs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from max.driver import load_devices
from max.engine import InferenceSession

from max_zimage.cli.info import conditions
from max_zimage.cli.model_shapes import PUBLISHED, specs_of
from max_zimage.cli.placement_flags import wanted_places
from max_zimage.compile.compiler import wait_for
from max_zimage.device.devices import device_spec
from max_zimage.device.dtypes import model_dtype
from max_zimage.device.libraries import check_libraries
from max_zimage.profiling.component import Component, Prepared, cut
from max_zimage.profiling.measure import Subject

_SIDE, _CAPTION_TOKENS, _TOKENS = 1024, 128, 4128
"""Of a component where nothing else is asked for: a 1024x1024 picture, alone and with a caption of 32 tokens."""


def component(arguments: argparse.Namespace) -> Subject:
    """Check a component, its sizes and its memory.

    Raises:
        ValueError: If anything is wrong with them.
    """
    if arguments.quantize is not None:
        raise ValueError("quantize is for the profile of a picture; leave it out, or leave --component out")
    if wanted_places(arguments):
        raise ValueError("where components run is for the profile of a picture; leave it out, or leave --component out")
    (device,) = load_devices([device_spec(arguments.device)])
    check_libraries(device)
    dtype = model_dtype(arguments.dtype or "auto", device)
    name = arguments.component
    tokens = {"text_encoder": _CAPTION_TOKENS, "transformer": _TOKENS, "vae": 0}[name]
    wanted = Component(
        name=name,
        specs=cut(specs_of(arguments.model), name, arguments.layers),
        dtype=dtype,
        batch=arguments.batch,
        tokens=tokens if arguments.tokens is None else arguments.tokens,
        height=_SIDE if arguments.height is None else arguments.height,
        width=_SIDE if arguments.width is None else arguments.width,
    )
    prepared = Prepared.of(wanted, device)

    def load() -> tuple[Callable[[], object], InferenceSession]:
        session = InferenceSession(devices=[device])
        graph, inputs = prepared.load(session), prepared.inputs()
        wait_for([graph])
        return lambda: graph(*inputs), session

    return Subject(
        conditions={
            **conditions(arguments.model or PUBLISHED, name, device, dtype),
            "sizes": wanted.sizes,
            "layers": arguments.layers,
            "weight_bytes": prepared.weight_bytes,
        },
        device=device,
        dtype=dtype,
        specs=wanted.specs,
        load=load,
    )
