"""The parts of a profile: what is waited for, what is left to the host, random weights, memory."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession

from max_zimage.cli.model_shapes import specs_of
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.compile.compiler import CompiledGraph, wait_for
from max_zimage.device.devices import download
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.profiling.component import MAIN_GRAPHS, Component, Prepared, cut, random_weight
from max_zimage.profiling.peak_memory import HostMemory, meter
from max_zimage.profiling.recorder import Call, Recorder, Run, Span
from tests.references.diffusers_runs import Pair


class Queue:
    """An accelerator that is not there: it only counts how often it is waited for."""

    is_host = False
    label = "gpu"
    stats = {"total_memory": 100, "free_memory": 40}  # noqa: RUF012

    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


@pytest.mark.parametrize(("synchronize", "waits"), [(True, 2 + 3), (False, 2)])
def test_what_is_waited_for(embedded: Pair, synchronize: bool, waits: int) -> None:
    """Before and after a run, and around calls if asked for."""
    device: Any = Queue()
    recorder = Recorder(device, synchronize=synchronize)
    noise = Buffer.from_numpy(np.zeros((1, 16, 4, 2, 4, 2), np.float32))
    recorder.profile(lambda: [embedded.ours.preprocess_latents(noise) for _ in range(3)], warmups=0, repeats=1)
    assert device.waits == 2 * waits
    assert [call.shapes for call in recorder.middle.calls] == [((1, 16, 4, 2, 4, 2),)] * 3
    assert recorder.memory["pack"].peak == 60
    assert "not a peak" in recorder.meter.meaning


def test_the_host_is_what_is_left() -> None:
    calls = [(1.0, 3.0), (4.0, 5.0), (5.5, 7.0), (9.0, 9.5)]
    steps = [(3.5, 5.25), (5.25, 8.0)]
    whole = Run(
        name="measured",
        begin=0.0,
        end=10.0,
        calls=tuple(Call(name="graph", begin=begin, end=end, shapes=()) for begin, end in calls),
        steps=tuple(Span(name="step", begin=begin, end=end) for begin, end in steps),
    )
    assert whole.host_seconds() == {
        "host before the steps": 3.5 - 2.0,
        "host between the steps": 4.5 - 2.5,
        "host after the steps": 2.0 - 0.5,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MAIN_GRAPHS)
def test_random_weights_and_inputs_give_finite_numbers(name: str) -> None:
    """Compiles each component with one layer; numbers that are not finite would take other paths of the processor."""
    specs = cut(specs_of("tiny-zimage"), name, None if name == "vae" else 1)
    component = Component(name=name, specs=specs, dtype="float32", batch=2, tokens=96, height=64, width=64)
    prepared = Prepared.of(component, CPU())
    graph: CompiledGraph = prepared.load(InferenceSession(devices=[CPU()]))
    wait_for([graph])
    for output in graph(*prepared.inputs()):
        values = download(output).astype(np.float32)
        assert np.isfinite(values).all()
        assert values.std() > 0.05


def test_random_weights_keep_the_size_of_what_they_multiply() -> None:
    wide = random_weight((64, 1 << 15), "float32").to_numpy()
    assert wide.shape == (64, 1 << 15)
    inputs = np.random.default_rng(3).standard_normal((100, 1 << 15), np.float32)
    assert (inputs @ wide.T).std() == pytest.approx(1, rel=0.1)
    kernel = random_weight((3, 3, 64, 8), "float32").to_numpy()
    assert kernel.std() == pytest.approx((9 * 64) ** -0.5, rel=0.1)
    panels = random_weight((5, 32, 64), "float32").to_numpy()  # 160 outputs of 64 inputs
    assert panels.std() == pytest.approx(64**-0.5, rel=0.1)
    panels = random_weight((5, 64, 32), "float32").to_numpy()  # the same in float32's units
    assert panels.std() == pytest.approx(64**-0.5, rel=0.1)
    taps = random_weight((2, 9, 64, 32), "float32").to_numpy()  # 64 outputs of 9 taps of 64 inputs
    assert taps.std() == pytest.approx((9 * 64) ** -0.5, rel=0.1)
    assert (random_weight((7,), "float32").to_numpy() == 1).all()
    bits = random_weight((48, 64), "bfloat16").view(DType.uint16, (48, 64)).to_numpy()
    rounded = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert np.allclose(rounded, random_weight((48, 64), "float32").to_numpy(), rtol=2**-8)


def test_layers_are_cut_and_no_more_are_made() -> None:
    few = cut(FULL_MODEL, "transformer", 5).transformer
    assert (few.num_layers, few.num_refiner_layers, few.dim) == (5, 2, 3840)
    assert cut(FULL_MODEL, "text_encoder", 1).text_encoder.layers_used(-2) == 1
    assert cut(FULL_MODEL, "transformer", None) == FULL_MODEL


def test_weights_pass_through_the_host_on_their_way_to_an_accelerator() -> None:
    device: Any = Queue()
    component = Component(
        name="text_encoder", specs=specs_of("tiny-zimage"), dtype="float32", batch=1, tokens=32, height=0, width=0
    )
    ours = Prepared.of(component, CPU())
    there = Prepared(component, device, ours.module, ours.types)
    with pytest.raises(NotEnoughMemoryError, match="available in the host's memory, which they pass through"):
        there.check_memory(2**20)
    with pytest.raises(NotEnoughMemoryError, match="available on gpu; use --layers N"):
        there.check_memory(2**40)


def test_the_peak_of_a_part_and_not_of_what_was_before(tmp_path: Path) -> None:
    kernel = meter(CPU())
    assert kernel.begin() is not None
    with mmap.mmap(-1, 64 << 20) as held:  # of its own: the heap of a long process may have as much to give
        held.write(b"1" * len(held))
        peak = kernel.end() or 0
        assert peak > 64 << 20
    before = kernel.begin() or 0
    assert (kernel.end() or 0) < before + (8 << 20)
    assert before < peak - (48 << 20)

    elsewhere = HostMemory(tmp_path / "absent")
    assert elsewhere.begin() is elsewhere.end() is None
    assert "not measured" in elsewhere.meaning
