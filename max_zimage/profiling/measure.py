"""A profile from beginning to end: load, run, count, and compare with the machine's own matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from max.driver import Device
from max.engine import InferenceSession

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.compile import compiler, modules
from max_zimage.compile.counting import Counter
from max_zimage.compile.registry import count
from max_zimage.device.dtypes import BYTES, ModelDtype
from max_zimage.graphs.model.text_encoder import HIDDEN_LAYER
from max_zimage.profiling import matmul_rate
from max_zimage.profiling.isolated import measure_alone
from max_zimage.profiling.recorder import Recorder
from max_zimage.profiling.report import Profile


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


def measure(subject: Subject, *, warmups: int, repeats: int, synchronize: bool) -> Profile:
    """Load, run and compare with the machine's matrix product, which comes last so that it takes no memory before.

    Args:
        subject: What is profiled.
        warmups: Runs before those that are measured.
        repeats: Measured runs.
        synchronize: Whether the device is waited for around each call.
    """
    begin, compiled = time.perf_counter(), modules.counts["misses"]
    run, session = subject.load()
    loaded, compiled = time.perf_counter() - begin, modules.counts["misses"] - compiled
    recorder = Recorder(subject.device, synchronize=synchronize)
    recorder.profile(run, warmups=warmups, repeats=repeats)
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
        count=partial(count, counter),
        product=matmul_rate.FULL,
        rate=matmul_rate.measured_rate(graph, matmul_rate.FULL, subject.dtype, subject.device),
        load_seconds=loaded,
        compiled=compiled,
        alone=alone,
    )
