"""`max-zimage profile`: where the seconds of a picture go, or those of one component on random inputs."""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from max.driver import Device, load_devices
from max.engine import InferenceSession

from max_zimage import embedded
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.cli.common import DEFAULT_PROMPT
from max_zimage.cli.compile import PUBLISHED, specs_of
from max_zimage.cli.console import display
from max_zimage.cli.errors import checking, quiet_libraries
from max_zimage.cli.field_flags import given_fields
from max_zimage.cli.info import versions
from max_zimage.cli.options import model_path
from max_zimage.cli.profile_table import print_profile
from max_zimage.compile import compiler
from max_zimage.components.text_encoder import HIDDEN_LAYER
from max_zimage.device.devices import device_spec
from max_zimage.device.dtypes import BYTES, ModelDtype, model_dtype
from max_zimage.device.libraries import check_libraries
from max_zimage.device.memory import NotEnoughMemoryError, available_memory, gib
from max_zimage.images.save import next_free_paths
from max_zimage.pipeline.estimate import activation_bytes
from max_zimage.pipeline.prepare import tokens_of_request
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.profiling import matmul_rate
from max_zimage.profiling.alone import measure_alone
from max_zimage.profiling.component import Component, Prepared, cut
from max_zimage.profiling.recorder import Recorder
from max_zimage.profiling.report import Profile
from max_zimage.profiling.trace import trace_events
from max_zimage.profiling.work import Counter
from max_zimage.progress import shown_by
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.step_cache import written

_PATIENCE = "What was not compiled before compiles now, which takes minutes; later profiles take it from disk."
_SIDE, _CAPTION_TOKENS, _TOKENS = 1024, 128, 4128
"""Of a component where nothing else is asked for: a 1024x1024 picture, alone and with a caption of 32 tokens."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is profiled, checked and not yet loaded.

    Attributes:
        conditions: What it is, in words and numbers.
        device: Where it runs.
        dtype: Of the transformer, or of the component.
        specs: Shapes of the model.
        load: Loads and compiles; returns one run, and the session that it is made in.
    """

    conditions: dict[str, Any]
    device: Device
    dtype: ModelDtype
    specs: ModelSpecs
    load: Callable[[], tuple[Callable[[], object], InferenceSession]]


def profile(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code, 0.

    Raises:
        BadInput: If anything is wrong with what is asked for, or does not fit into memory; before anything is compiled.
    """
    with quiet_libraries(arguments.debug) as stdout:
        with checking():
            check_flags(arguments)
            subject = picture(arguments) if arguments.component is None else component(arguments)
        with shown_by(display(note=_PATIENCE)):
            measured = measure(subject, arguments)
    facts = measured.facts()
    facts["trace"] = None if arguments.trace is None else str(_save_trace(measured, Path(arguments.trace)))
    if arguments.json:
        print(json.dumps(facts), file=stdout)
    else:
        print_profile(facts)
    return 0


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that have no meaning together, and a trace that could not be written.

    Raises:
        ValueError: If there are such.
    """
    name = arguments.component
    idle = {None: ("tokens", "layers"), "vae": ("tokens",)}.get(name, ("height", "width"))
    idle += () if name is None else ("prompt", "steps", "guidance", "step_cache", "weight_path")
    for flag in idle:
        if getattr(arguments, flag):
            where = "without --component" if name is None else f"with --component {name}"
            raise ValueError(f"--{flag.replace('_', '-')} has no meaning {where}; leave it out")
    if arguments.trace is not None:
        folder = Path(arguments.trace).parent
        if not folder.is_dir() or Path(arguments.trace).is_dir():
            raise ValueError(f"--trace {arguments.trace}: name a file in a folder that exists")


def picture(arguments: argparse.Namespace) -> Subject:
    """Check a model, a request and their memory.

    Raises:
        ValueError: If anything is wrong with them.
    """
    prepared = ZImagePipeline.prepare(
        model_path(arguments.model),
        device=arguments.device,
        dtype=arguments.dtype or "auto",
        weight_path=arguments.weight_path,
    )
    sources, device = prepared.sources, prepared.devices[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        request = GenerationRequest.create(
            limits=sources.limits,
            defaults=sources.defaults,
            **{"prompt": DEFAULT_PROMPT} | given_fields(arguments),
            num_images_per_prompt=arguments.batch,
            seed=0,
            output_type="np",
        )
    tokens_of_request(request, prepared.tokenizer, sources.limits)
    dtype = sources.dtypes["transformer"]
    _check_picture_memory(request, sum(sources.nbytes.values()), sources.specs, dtype, device)

    def load() -> tuple[Callable[[], object], InferenceSession]:
        pipeline = ZImagePipeline.from_prepared(prepared)
        pipeline.compile_step_cache(request.step_cache)
        return lambda: pipeline.generate(request), pipeline.session

    return Subject(
        conditions={
            **_conditions(arguments.model or embedded.NAME, None, device, dtype),
            "sizes": f"{arguments.batch} x {request.width}x{request.height} pixels",
            "steps_asked": request.num_inference_steps,
            "guidance": request.guidance_scale,
            "step_cache": written(request.step_cache),
        },
        device=device,
        dtype=dtype,
        specs=sources.specs,
        load=load,
    )


def component(arguments: argparse.Namespace) -> Subject:
    """Check a component, its sizes and its memory.

    Raises:
        ValueError: If anything is wrong with them.
    """
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
        compiler.wait_for([graph])
        return lambda: graph(*inputs), session

    return Subject(
        conditions={
            **_conditions(arguments.model or PUBLISHED, name, device, dtype),
            "sizes": wanted.sizes,
            "layers": arguments.layers,
            "weight_bytes": prepared.weight_bytes,
        },
        device=device,
        dtype=dtype,
        specs=wanted.specs,
        load=load,
    )


def measure(subject: Subject, arguments: argparse.Namespace) -> Profile:
    """Load, run and compare with the machine's matrix product, which comes last so that it takes no memory before."""
    begin, compiled = time.perf_counter(), compiler.counts["misses"]
    run, session = subject.load()
    loaded, compiled = time.perf_counter() - begin, compiler.counts["misses"] - compiled
    recorder = Recorder(subject.device, synchronize=not arguments.no_sync)
    recorder.profile(run, warmups=arguments.warmup, repeats=arguments.repeats)
    latents = [call.shapes[0] for call in recorder.middle.calls if call.name == "denoise"]
    alone = measure_alone(subject.specs.transformer, latents[0], subject.device) if latents else []
    graph = matmul_rate.product_graph(matmul_rate.FULL, subject.dtype, subject.device, session)
    compiler.wait_for([graph])
    size = BYTES[subject.dtype]
    counter = Counter(
        text_encoder=subject.specs.text_encoder,
        layers=subject.specs.text_encoder.layers_used(HIDDEN_LAYER),
        transformer=subject.specs.transformer,
        vae=subject.specs.vae,
        size=size,
        picture_size=BYTES["float32"] if subject.device.is_host else size,
    )
    return Profile(
        conditions=subject.conditions,
        recorder=recorder,
        count=counter.of_call,
        product=matmul_rate.FULL,
        rate=matmul_rate.measured_rate(graph, matmul_rate.FULL, subject.dtype, subject.device),
        load_seconds=loaded,
        compiled=compiled,
        alone=alone,
    )


def _check_picture_memory(
    request: GenerationRequest, weights: int, specs: ModelSpecs, dtype: ModelDtype, device: Device
) -> None:
    activations = activation_bytes(
        specs,
        height=request.height,
        width=request.width,
        guided=request.use_guidance,
        dtype=dtype,
        pictures=request.num_images,
    )
    available = available_memory() if device.is_host else int(device.stats["total_memory"])
    if weights + activations > available:
        raise NotEnoughMemoryError(
            f"the picture needs {gib(weights)} of weights and about {gib(activations)} more, {gib(available)} are "
            "available; ask for a smaller --height and --width or a smaller --batch, or profile one component with "
            "--component and --layers"
        )


def _conditions(model: str, component: str | None, device: Device, dtype: str) -> dict[str, Any]:
    return {
        "model": model,
        "component": component,
        "device": device.label + ("" if device.is_host else f":{device.id}"),
        "dtype": dtype,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }


def _save_trace(measured: Profile, wanted: Path) -> Path:
    (path,) = next_free_paths(wanted, 1)
    path.write_text(json.dumps(trace_events(measured)), encoding="utf-8")
    return path
