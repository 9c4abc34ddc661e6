"""The denoising loop is one compiled call a step: no eager tensor op, no transfer, nothing else that waits.

The loop is what happens between the first call of the step's graph and the call of the decoder; what samplers, guidance
and the like add to it is in `test_loop_additions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from max.driver import Buffer
from max.experimental import functional as F
from max.experimental.tensor import Tensor

from max_zimage import ZImagePipeline
from max_zimage.compile import compiler
from max_zimage.pipeline import denoising, run
from max_zimage.pipeline.callbacks import StepCallback
from tests.references.diffusers_runs import Pair
from tests.references.watched_loop import watched_loop

STEPS = 5


def draw(pair: Pair, callback: StepCallback | None = None) -> None:
    """Guidance that ends halfway: both forms of a step."""
    pair.ours(
        "a red star", num_inference_steps=STEPS, seed=1, guidance_scale=2.0, cfg_truncation=0.5, cfg_normalization=1.0,
        output_type="np", callback_on_step_end=callback,
    )  # fmt: skip


def test_a_step_is_one_compiled_call(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched_loop(monkeypatch) as watched:
        draw(embedded)
    assert watched.called == ["text_encoder", "conditioning", "pack", "modulation", *["denoise"] * STEPS, "decode"]


def planted_op(pipeline: ZImagePipeline, latents: Buffer) -> None:
    F.add(Tensor(storage=latents), Tensor(storage=latents))


def planted_transfer(pipeline: ZImagePipeline, latents: Buffer) -> None:
    latents.to_numpy()


def planted_copy(pipeline: ZImagePipeline, latents: Buffer) -> None:
    latents.to(pipeline.device)


def planted_wait(pipeline: ZImagePipeline, latents: Buffer) -> None:
    pipeline.device.synchronize()


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (planted_op, "an eager tensor op ran"),
        (planted_transfer, r"Buffer\.to_numpy was called"),
        (planted_copy, r"Buffer\.to was called"),
        (planted_wait, r"Device\.synchronize was called"),
    ],
)
def test_what_is_planted_in_the_loop_is_caught(
    plant: Callable[[ZImagePipeline, Buffer], None], message: str, embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = embedded.ours
    original = ours.execute

    def execute(model_inputs: Any, output_type: str, on_step: object = None) -> Any:
        return original(model_inputs, output_type, lambda step, timestep, latents: plant(ours, latents))

    monkeypatch.setattr(ours, "execute", execute)
    with watched_loop(monkeypatch), pytest.raises(AssertionError, match=message):
        draw(embedded)


def test_only_a_callback_brings_latents_to_the_host(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched_loop(monkeypatch) as watched, pytest.raises(AssertionError, match=r"Buffer\.to was called"):
        draw(embedded, lambda pipeline, step, timestep, values: None)
    assert watched.called[-1] == "denoise"


def test_the_trace_names_every_stage(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a profiler shows of a picture: one range per graph, the steps inside a range of their own."""
    ranges: list[str] = []
    depth = 0

    class RecordedTracer:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            nonlocal depth
            ranges.append("  " * depth + self.name)
            depth += 1

        def __exit__(self, *raised: object) -> None:
            nonlocal depth
            depth -= 1

    for module in (compiler, denoising, run):
        monkeypatch.setattr(module, "Tracer", RecordedTracer)
    draw(embedded)
    assert ranges == [
        "text_encoder",
        "conditioning",
        "pack",
        "modulation",
        "denoising",
        *(line for step in range(STEPS) for line in (f"  step {step + 1}", "    denoise")),
        "decode",
    ]
