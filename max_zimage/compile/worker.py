"""The child process of `max_zimage.compile.ahead_of_time`: one graph, one target, one line of JSON on stdout.

A pickled `max_zimage.compile.ahead_of_time.Job` comes on stdin, which stays open as long as the parent lives. What MAX
writes itself goes to stderr, which the parent keeps in a file.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from max.driver import (
    CPU,
    Accelerator,
    Device,
    set_virtual_device_api,
    set_virtual_device_count,
    set_virtual_device_target_arch,
)
from max.dtype import DType
from max.engine import InferenceSession
from max.experimental.nn import Module
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.compile.ahead_of_time import TARGETS
from max_zimage.compile.artifacts import artifact_key, artifact_name, write
from max_zimage.compile.cubins import Symbol, symbols_in
from max_zimage.compile.device_weights import shared
from max_zimage.compile.jobs import Job
from max_zimage.compile.kernel_lists import kernels_of
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.model.conditioning import CaptionConditioning, ModulationTable
from max_zimage.graphs.model.latents import PackLatents
from max_zimage.graphs.model.text_encoder import TextEncoder
from max_zimage.graphs.model.vae import DecodeLatents, EncodeImage
from max_zimage.graphs.step.advance import PrepareScheduler, SchedulerStep
from max_zimage.graphs.step.denoise import DenoiseStep
from max_zimage.graphs.step.extrapolate import TaylorStep, TaylorUpdate
from max_zimage.graphs.step.first_block import FirstBlockStep, PictureGuidance
from max_zimage.host.folders import room_to_compile
from max_zimage.host.lifeline import end_with_parent

Definition = tuple[Module[..., Any], tuple[TensorType, ...]]

_HIDDEN_LAYER = -2  # max_zimage.components.text_encoder.HIDDEN_LAYER, whose module brings all of max.pipelines along


def main() -> None:
    """Compile the job on stdin."""
    job: Job = pickle.load(sys.stdin.buffer)
    end_with_parent(0)
    # MAX may print: whatever goes to stdout from here on belongs into the log, and the answer to the real stdout.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    result: dict[str, object] = {"error": None}
    try:
        _compile(job, result)
    except Exception as error:  # the compiler's failures have no type of their own
        traceback.print_exc()
        result["error"] = _first_line(error)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result |= {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * 1024}
    print(json.dumps(result), file=answer, flush=True)
    # MAX's compiler threads now and then abort a process that ends in the usual way, after all its work.
    sys.stderr.flush()
    os._exit(0)


def _compile(job: Job, result: dict[str, object]) -> None:
    """Compile a job; what is known so far is in the result if a later part fails."""
    device = _device(job.target)
    session = InferenceSession(devices=[device])
    begin = time.perf_counter()
    module, types = definition(job.graph, job.specs, job.dtype, DeviceRef.from_device(device))
    together = GraphModule()
    in_place = shared(device) and any(True for _ in module.parameters)
    graph = trace(module, types, job.graph, together, weights_in_place=in_place)
    traced = time.perf_counter()
    result["trace_seconds"] = traced - begin
    if job.list_kernels:
        result["kernels"] = asdict(kernels_of(session, lambda: compile_with_kernels(session, together, [graph])))
        if job.symbols:
            result["symbols"] = [asdict(symbol) for symbol in _symbols(job, device)]
        result["seconds"] = time.perf_counter() - traced
        return
    with room_to_compile():
        compiled = compile_with_kernels(session, together, [graph])
    result["seconds"] = time.perf_counter() - traced
    if job.keep:
        spec = spec_of(job.graph, job.specs)
        key = artifact_key(job.graph, spec, module, types, device, weights_in_place=in_place)
        result["artifact"] = str(write(compiled, artifact_name([job.graph], [key])))


def _symbols(job: Job, device: Device) -> tuple[Symbol, ...]:
    """Compile a job to its end, without MAX's cache: from there kernels of other graphs come along."""
    session, together = InferenceSession(devices=[device]), GraphModule()
    module, types = definition(job.graph, job.specs, job.dtype, DeviceRef.from_device(device))
    graph = trace(module, types, job.graph, together)
    with room_to_compile(max_cache=False), tempfile.NamedTemporaryFile(suffix=".mef") as file:
        compile_with_kernels(session, together, [graph]).export_mef(file.name)
        return symbols_in(Path(file.name).read_bytes())


def _device(target: str) -> Device:
    virtual = TARGETS[target]
    if virtual is None:
        return CPU()
    api, architecture = virtual
    set_virtual_device_api(api)
    set_virtual_device_target_arch(architecture)
    set_virtual_device_count(1)
    return Accelerator()


def spec_of(graph: str, specs: ModelSpecs) -> object:
    """The spec of a graph, as `max_zimage.compile.artifacts.artifact_key` takes it."""
    match graph:
        case "pack" | "prepare_scheduler" | "scheduler_step":
            return None
        case "text_encoder":
            return specs.text_encoder
        case "decode" | "encode":
            return specs.vae
        case _:
            return specs.transformer


def definition(graph: str, specs: ModelSpecs, model_dtype: ModelDtype, device: DeviceRef) -> Definition:
    """The Module and input types of a graph, as the components and `max_zimage.compile.small_graphs` make it.

    Args:
        graph: One of `max_zimage.compile.ahead_of_time.GRAPHS`.
        specs: Shapes of the model.
        model_dtype: Of weights and computation.
        device: Where it will run.
    """
    dtype = DType[model_dtype]
    match graph:
        case "pack":
            pack = build(lambda: PackLatents(specs.transformer.in_channels), DType.float32, device)
            return pack, pack.input_types(device)
        case "prepare_scheduler":
            prepare = build(PrepareScheduler, DType.float32, device)
            return prepare, prepare.input_types(device)
        case "scheduler_step":
            update = build(SchedulerStep, DType.float32, device)
            return update, update.input_types(device)
        case "modulation":
            table = build(lambda: ModulationTable(specs.transformer), dtype, device)
            return table, table.input_types(device)
        case "conditioning":
            captions = build(lambda: CaptionConditioning(specs.transformer), dtype, device)
            return captions, captions.input_types(dtype, device)
        case "denoise":
            step = build(lambda: DenoiseStep(specs.transformer), dtype, device)
            return step, step.input_types(dtype, device)
        case "first_block_noise_refiner" | "guidance" | "taylor_update" | "taylor_step":
            return _cache_definition(graph, specs, dtype, device)
        case _:
            return _encoder_definition(graph, specs, dtype, device)


def _cache_definition(name: str, specs: ModelSpecs, dtype: DType, device: DeviceRef) -> Definition:
    transformer = specs.transformer
    match name:
        case "guidance":
            guidance = build(lambda: PictureGuidance(transformer), DType.float32, device)
            return guidance, guidance.input_types(device)
        case "taylor_update":
            update = build(lambda: TaylorUpdate(transformer), DType.float32, device)
            return update, update.input_types(device)
        case "taylor_step":
            extrapolated = build(lambda: TaylorStep(transformer), DType.float32, device)
            return extrapolated, extrapolated.input_types(device)
        case _:
            step = build(lambda: FirstBlockStep(transformer, "noise_refiner"), dtype, device)
            return step, step.input_types(dtype, device)


def _encoder_definition(name: str, specs: ModelSpecs, dtype: DType, device: DeviceRef) -> Definition:
    if name == "text_encoder":
        layers = specs.text_encoder.layers_used(_HIDDEN_LAYER)
        text = build(lambda: TextEncoder(specs.text_encoder, layers), dtype, device)
        return text, text.input_types(device)
    if name == "decode":
        decoder = build(lambda: DecodeLatents(specs.vae), dtype, device)
        return decoder, decoder.input_types(device)
    encoder = build(lambda: EncodeImage(specs.vae), dtype, device)
    return encoder, encoder.input_types(device)


def _first_line(error: BaseException) -> str:
    """The first line of the innermost cause, which is the compiler's own; the outer ones only say that it failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    main()
