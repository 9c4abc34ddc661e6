"""The child process of `max_zimage.compile.ahead_of_time`: graphs for one target, a line of JSON on stdout for each.

Pickled `max_zimage.compile.jobs.Job`s come on stdin, which stays open as long as the parent lives. What MAX itself
writes goes to stderr, which the parent keeps in a file.
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

from max.driver import (
    CPU,
    Accelerator,
    Device,
    set_virtual_device_api,
    set_virtual_device_count,
    set_virtual_device_target_arch,
)
from max.engine import InferenceSession
from max.graph import DeviceRef
from max.graph import Module as GraphModule

from max_zimage.compile import kept_launches
from max_zimage.compile.ahead_of_time import TARGETS
from max_zimage.compile.artifacts import artifact_key, artifact_name, write
from max_zimage.compile.cubins import Symbol, symbols_in
from max_zimage.compile.device_weights import shared
from max_zimage.compile.inner_loops import loop_of
from max_zimage.compile.jobs import Job
from max_zimage.compile.kernel_lists import kernels_of
from max_zimage.compile.registry import Made, find_entry, key_of, made
from max_zimage.compile.sent import sent_in
from max_zimage.graphs.cpu import multiplying_by
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import accelerators_of, text_of, trace
from max_zimage.host.folders import room_to_compile
from max_zimage.host.lifeline import end_with_parent


def main() -> None:
    """Compile the jobs on stdin."""
    jobs: list[Job] = pickle.load(sys.stdin.buffer)
    end_with_parent(0)
    # MAX may print: whatever goes to stdout from here on belongs into the log, and the answers to the real stdout.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    device, cpu_seconds = _device(jobs[0].target, max(_devices_of(job) for job in jobs)), 0.0
    for job in jobs:
        result: dict[str, object] = {"error": None}
        try:
            _compile(job, device, result)
        except Exception as error:  # the compiler's failures have no type of their own
            traceback.print_exc()
            result["error"] = _first_line(error)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        spent = usage.ru_utime + usage.ru_stime
        result |= {"cpu_seconds": spent - cpu_seconds, "peak_bytes": usage.ru_maxrss * 1024}
        cpu_seconds = spent
        print(json.dumps(result), file=answer, flush=True)
    # MAX's compiler threads now and then abort a process that ends in the usual way, after all its work.
    sys.stderr.flush()
    os._exit(0)


def _compile(job: Job, device: Device, result: dict[str, object]) -> None:
    """Compile a job; what is known so far is in the result if a later part fails."""
    begin = time.perf_counter()
    module, types = _made(job, device)
    devices = list(accelerators_of(module)) or [device]
    in_place = shared(device) and len(devices) == 1 and any(True for _ in module.parameters)
    spec = key_of(job.graph, job.specs, job.attention, job.mesh)
    loop = loop_of(module, device)
    key = artifact_key(job.graph, spec, module, types, device, weights_in_place=in_place, loop=loop)
    known = kept_launches.find(job.graph, key) if job.list_kernels and not job.symbols else None
    if known is not None and len(devices) == 1:
        result |= {"kernels": asdict(known), "trace_seconds": 0.0, "seconds": time.perf_counter() - begin}
        return
    session, together = InferenceSession(devices=devices), GraphModule()
    with multiplying_by(loop):
        graph = trace(module, types, job.graph, together, weights_in_place=in_place)
    if len(devices) > 1:
        result["sent"] = [asdict(each) for each in sent_in(text_of(together), job.graph)]
    traced = time.perf_counter()
    result["trace_seconds"] = traced - begin
    if job.list_kernels:
        launches = known or kernels_of(session, lambda: compile_with_kernels(session, together, [graph]))
        kept_launches.keep(job.graph, key, launches)
        result["kernels"] = asdict(launches)
        if job.symbols:
            result["symbols"] = [asdict(symbol) for symbol in _symbols(job, device)]
        result["seconds"] = time.perf_counter() - traced
        return
    with room_to_compile():
        compiled = compile_with_kernels(session, together, [graph])
    result["seconds"] = time.perf_counter() - traced
    if job.keep:
        result["artifact"] = str(write(compiled, artifact_name([job.graph], [key])))


def _made(job: Job, device: Device) -> Made:
    place = DeviceRef.from_device(device)
    return made(job.graph, job.specs, job.dtype, place, job.attention, job.mesh, job.storages)


def _symbols(job: Job, device: Device) -> tuple[Symbol, ...]:
    """Compile a job to its end, without MAX's cache: from there kernels of other graphs come along."""
    module, types = _made(job, device)
    session, together = InferenceSession(devices=list(accelerators_of(module)) or [device]), GraphModule()
    graph = trace(module, types, job.graph, together)
    with room_to_compile(max_cache=False), tempfile.NamedTemporaryFile(suffix=".mef") as file:
        compile_with_kernels(session, together, [graph]).export_mef(file.name)
        return symbols_in(Path(file.name).read_bytes())


def _devices_of(job: Job) -> int:
    entry = find_entry(job.graph)
    return job.mesh.devices if entry is not None and entry.is_meshed else 1


def _device(target: str, count: int) -> Device:
    """The first device of so many that are stood in for."""
    virtual = TARGETS[target]
    if virtual is None:
        return CPU()
    api, architecture = virtual
    set_virtual_device_api(api)
    set_virtual_device_target_arch(architecture)
    set_virtual_device_count(count)
    return Accelerator()


def _first_line(error: BaseException) -> str:
    """The first line of the innermost cause, which is the compiler's own; the outer ones only say that it failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    main()
