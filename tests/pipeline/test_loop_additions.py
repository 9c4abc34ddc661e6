"""What samplers, guidance and the like add to the denoising loop: compiled calls, and no work of the host's.

Samplers that draw noise are the exception. It is drawn on the host one evaluation ahead, while the device works, and
brought to the device; there it is copied into the sampler's history, which on a CPU waits for the copy. To draw all of
it before the first step would let the device wait as long, and hold as many latents as there are steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from max.driver import Buffer

from max_zimage.compile.compiler import CompiledGraph
from max_zimage.device.devices import download
from max_zimage.pipeline import step_noise
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.noise import standard_normal
from tests.references.diffusers_runs import Pair, relative_l2
from tests.references.engine_runs import inputs_of
from tests.references.watched_loop import watched_loop

STEPS, SIDE = 4, 64
IMAGE = np.full((SIDE, SIDE, 3), 90, np.uint8)
MASK = np.repeat(np.linspace(0, 255, SIDE).astype(np.uint8)[None], SIDE, 0)
MASKED: dict[str, Any] = {"image": IMAGE, "mask_image": MASK}
PLAIN, GUIDED = ("denoise",), ("denoise", "guided_update")
ADDITIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "cfg_zero_star": ({"guidance_variant": "cfg_zero_star", "zero_init": True}, GUIDED),
    "apg": ({"guidance_variant": "apg", "apg_momentum": -0.5}, GUIDED),
    "guidance_rescale": ({"guidance_rescale": 0.7}, GUIDED),
    "guidance_interval": ({"guidance_interval": (0.0, 0.5)}, PLAIN),
    "slg": ({"slg": True}, PLAIN),
    "nag": ({"guidance_scale": 0.0, "nag_scale": 5.0}, ("denoise_nag",)),
    "dype": ({"dype": "vision_yarn", "dype_base_resolution": 32}, ("positions", "denoise")),
    "mask_image": (MASKED, ("denoise", "keep_unmasked")),
    "soft_mask": ({**MASKED, "soft_mask": True}, ("denoise", "keep_unmasked")),
    "progressive": ({"progressive": 0.5}, PLAIN),
    "unipc": ({"sampler": "unipc"}, PLAIN),
    "res_multistep": ({"sampler": "res_multistep"}, PLAIN),
    "heun": ({"sampler": "heun"}, PLAIN),
}
"""Name -> fields of a request, and the compiled calls of an evaluation. Every graph that a step may have is in one."""
DRAWING = ["euler_stochastic", "euler_ancestral", "er_sde", "dpmpp_sde"]
"""With one slot for the noise alone, with slots beside it, and with two evaluations in a step."""
DRAWN = ["from_numpy", "to", "inplace_copy_from", "synchronize"]
"""What noise takes: brought to the device behind one evaluation, laid into the history before the next."""


def fields(**asked: Any) -> dict[str, Any]:
    """A request as small as one can be that goes on for some steps."""
    common = {"prompt": "a red star", "num_inference_steps": STEPS, "seed": 1, "guidance_scale": 2.0}
    return {**common, "height": SIDE, "width": SIDE, **asked}


def batch(pair: Pair, **asked: Any) -> ZImageModelInputs:
    """Its inputs, on the device."""
    sources = pair.ours.sources
    return inputs_of(
        pair.ours, GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **fields(**asked))
    )


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_is_compiled_calls_alone(name: str, embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, calls = ADDITIONS[name]
    with watched_loop(monkeypatch) as watched:
        embedded.ours(**fields(**asked), output_type="np")
    evaluations = 2 * STEPS - 1 if name == "heun" else STEPS
    assert watched.called[watched.called.index(calls[0]) :] == [*calls * evaluations, "decode"]


@pytest.mark.parametrize("sampler", DRAWING)
def test_noise_of_a_step_is_all_that_moves(sampler: str, embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = batch(embedded, sampler=sampler).evaluations.noisy
    with watched_loop(monkeypatch, DRAWN) as watched:
        embedded.ours(**fields(sampler=sampler), output_type="np")
    assert watched.called[-len(noisy) - 1 :] == ["denoise"] * len(noisy) + ["decode"]
    assert watched.moved == DRAWN * int(noisy[1:].sum())  # that of the first one is there before the loop


def test_noise_is_drawn_while_the_evaluation_before_runs(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so before anybody sees the step, who may wait for it."""
    events: list[str] = []
    call = CompiledGraph.__call__

    def drawn(seed: int, shape: tuple[int, ...], stream: int) -> np.ndarray:
        events.append("noise")
        return standard_normal(seed, shape, stream)

    def called(graph: CompiledGraph, *inputs: Buffer) -> list[Buffer]:
        events.append(graph.name)
        return call(graph, *inputs)

    def on_step(step: int, timestep: float, latents: Buffer) -> None:
        events.append("step")

    inputs = batch(embedded, sampler="euler_ancestral")
    assert inputs.evaluations.noisy.tolist() == [True, True, True, False]
    monkeypatch.setattr(step_noise, "standard_normal", drawn)
    monkeypatch.setattr(CompiledGraph, "__call__", called)
    embedded.ours.denoising(inputs).run(on_step)
    assert events[events.index("noise") :] == [
        *("noise", "denoise"),
        *("noise", "step", "denoise") * 2,
        *("step", "denoise", "step"),
    ]


@pytest.mark.parametrize("sampler", DRAWING)
def test_a_picture_that_goes_on_alone_keeps_its_noise(sampler: str, embedded: Pair) -> None:
    """What was drawn ahead is of both pictures."""
    run = embedded.ours.denoising(batch(embedded, sampler=sampler, num_images_per_prompt=2))
    run.advance()
    run.keep([1])
    run.run()
    whole = embedded.ours.denoising(batch(embedded, sampler=sampler, num_images_per_prompt=2))
    whole.run()
    assert relative_l2(download(run.latents), download(whole.latents)[1:]) < 5e-6
