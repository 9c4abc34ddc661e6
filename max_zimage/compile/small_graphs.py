"""Graphs without weights, compiled once a process and device."""

from __future__ import annotations

from functools import lru_cache

from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef

from max_zimage.compile.compiler import CompiledGraph, compile_graph
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.latents import PackLatents
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.advance import PrepareScheduler, SchedulerStep
from max_zimage.graphs.step.first_block import PictureGuidance


def pack_graph(latent_channels: int, device: DeviceRef, session: InferenceSession) -> CompiledGraph:
    """Patchify + pack, `graphs.model.latents.PackLatents`."""
    module = build(lambda: PackLatents(latent_channels), DType.float32, device)
    return compile_graph("pack", module, module.input_types(device), {}, session, spec=None, device=device.to_device())


@lru_cache(maxsize=4)
def prepare_scheduler_graph(device: DeviceRef) -> CompiledGraph:
    """Sigmas to timesteps and deltas, `graphs.step.advance.PrepareScheduler`."""
    module = build(PrepareScheduler, DType.float32, device)
    return compile_graph(
        "prepare_scheduler",
        module,
        module.input_types(device),
        {},
        _session(device),
        spec=None,
        device=device.to_device(),
    )


@lru_cache(maxsize=4)
def guidance_graph(spec: TransformerSpec, device: DeviceRef) -> CompiledGraph:
    """Guidance and the Euler update of one picture, `graphs.step.first_block.PictureGuidance`."""
    module = build(lambda: PictureGuidance(spec), DType.float32, device)
    return compile_graph(
        "guidance", module, module.input_types(device), {}, _session(device), spec=spec, device=device.to_device()
    )


@lru_cache(maxsize=4)
def scheduler_step_graph(device: DeviceRef) -> CompiledGraph:
    """The Euler update, `graphs.step.advance.SchedulerStep`."""
    module = build(SchedulerStep, DType.float32, device)
    return compile_graph(
        "scheduler_step", module, module.input_types(device), {}, _session(device), spec=None, device=device.to_device()
    )


def _session(device: DeviceRef) -> InferenceSession:
    return InferenceSession(devices=[device.to_device()])
