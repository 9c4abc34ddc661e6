"""What the denoising step has inside it, measured alone where a graph of its own computes the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from max.driver import Device
from max.graph import DeviceRef

from max_zimage.compile.compiler import wait_for
from max_zimage.compile.graphs import shared_graph
from max_zimage.device.devices import upload
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.profiling.recorder import Call, Recorder

_REPEATS = 9


@dataclass(frozen=True, kw_only=True)
class IsolatedGraph:
    """One graph, at the size that it has inside the step; part of the step's seconds and not to be added to them.

    Attributes:
        label: What it computes.
        call: The call in the middle of several.
    """

    label: str
    call: Call


def measure_alone(spec: TransformerSpec, latents: tuple[int, ...], device: Device) -> list[IsolatedGraph]:
    """Measure every such graph, waiting for the device around each call; compiles those that are not yet.

    Args:
        spec: The transformer's shape.
        latents: Shape of the packed latents, [batch, image tokens, 4 · channels].
        device: Where the step runs.
    """
    found = []
    for label, run in _graphs(spec, latents, device).items():
        recorder = Recorder(device, synchronize=True)
        recorder.profile(run, warmups=1, repeats=_REPEATS, label=f"Profiling {label}")
        (call,) = recorder.middle.calls
        found.append(IsolatedGraph(label=label, call=call))
    return found


def _graphs(spec: TransformerSpec, latents: tuple[int, ...], device: Device) -> dict[str, Callable[[], object]]:
    """What it computes -> the call."""
    numbers = np.random.default_rng(0).standard_normal(latents, np.float32)
    state, velocity = upload(numbers, device), upload(numbers[::-1], device)
    place, empty = DeviceRef.from_device(device), np.zeros
    euler, guide = shared_graph("scheduler_step", None, place), shared_graph("guidance", spec, place)
    delta, row, scale = (upload(np.array([each]), device) for each in (np.float32(-0.1), np.int32(0), np.float32(1)))
    tokens = latents[1:]
    history = (empty((0, *latents)), [-0.1, 0.0], empty(0), empty((0, 2)), empty((0, 0)))
    arrays = (empty((0, 1, *tokens)), empty(0), *history)
    others, other_scales, *advance = (upload(np.asarray(each, np.float32), device) for each in arrays)
    branches = velocity[:1, :, :], state[:1, :, :], others
    for graph in (guide, euler):
        wait_for([graph])
    return {
        "guidance and scheduler of a picture": lambda: guide(
            state, velocity, row, *branches, scale, other_scales, scale, *advance
        ),
        "scheduler (Euler update)": lambda: euler(state, velocity, delta),
    }
