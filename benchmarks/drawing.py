"""Ways to draw a picture with the embedded model: diffusers, eager and compiled, and ours, all on the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.measure import first_line, seconds_of
from max_zimage import ZImagePipeline, embedded
from max_zimage.graphs.kernel_library import without_kernels
from tests.references.noises import initial_noise

PROMPT = "a red star on a blue background"
EAGER = "diffusers"
EAGER_BFLOAT16 = "diffusers, bfloat16"
OURS = "ours"
OURS_BFLOAT16 = "ours, bfloat16"
PLAIN = "ours, without its kernels"
CACHES = ("first_block", "taylorseer")

Draw = Callable[..., np.ndarray]
"""draw(scene, callback=None) -> uint8 [height, width, 3]."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is drawn: a square of `side` pixels."""

    side: int
    steps: int
    guidance: float

    @property
    def sizes(self) -> str:
        """In words."""
        return f"{self.side}x{self.side}, {self.steps} steps, guidance {self.guidance:g}"

    @property
    def noise(self) -> np.ndarray:
        """float32 [1, 16, side/8, side/8], the same in every call."""
        return initial_noise(1, 1, 16, self.side, self.side)

    def arguments(self) -> dict[str, Any]:
        """Those that both pipelines spell alike."""
        return {
            "height": self.side,
            "width": self.side,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
        }


@dataclass(frozen=True, kw_only=True)
class CompiledDiffusers:
    """diffusers with torch.compile of as much as torch can compile.

    Attributes:
        name: Says what is compiled.
        draw: None if nothing could be.
        seconds: Compiling took, all scenes' shapes together.
        failures: What could not be compiled, and why, in one line each.
    """

    name: str
    draw: Draw | None
    seconds: float
    failures: tuple[tuple[str, str], ...]


def diffusers_draw(pipeline: diffusers.ZImagePipeline | None = None) -> Draw:
    """A call of diffusers' pipeline, eager unless its parts are compiled."""
    loaded = load_diffusers() if pipeline is None else pipeline

    def draw(scene: Scene, callback: Callable[..., Any] | None = None) -> np.ndarray:
        latents = torch.from_numpy(scene.noise.copy())
        return np.asarray(loaded(PROMPT, latents=latents, callback_on_step_end=callback, **scene.arguments()).images[0])

    return draw


def our_draw(pipeline: ZImagePipeline, step_cache: str | None = None) -> Draw:
    """A call of ours."""

    def draw(scene: Scene, callback: Callable[..., Any] | None = None) -> np.ndarray:
        arguments = {**scene.arguments(), "callback_on_step_end": callback, "step_cache": step_cache}
        return np.asarray(pipeline(PROMPT, latents=scene.noise, **arguments)[0])

    return draw


def our_pipelines(*, more: bool) -> dict[str, ZImagePipeline]:
    """Ours by label, in float32.

    Args:
        more: Whether the one without the ops of `kernels` is wanted, which compiles for minutes, and the one in
            bfloat16.
    """
    pipelines = {}
    if more:
        with without_kernels():
            pipelines[PLAIN] = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
    pipelines[OURS] = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
    if more:
        pipelines[OURS_BFLOAT16] = ZImagePipeline.from_pretrained(device="cpu", dtype="bfloat16")
    return pipelines


def compiled_diffusers(scenes: Sequence[Scene]) -> CompiledDiffusers:
    """Compile the transformer and the VAE, or the transformer alone where the VAE does not compile.

    Args:
        scenes: Drawn once each, since torch compiles at the first call of every shape.
    """
    failures: list[tuple[str, str]] = []
    for parts in (("transformer", "VAE"), ("transformer",)):
        name = f"diffusers, torch.compile of {' and '.join(parts)}"
        torch.compiler.reset()
        pipeline = load_diffusers()
        pipeline.transformer.compile()
        if "VAE" in parts:
            pipeline.vae.decoder.compile()
        draw = diffusers_draw(pipeline)
        try:
            seconds = sum(seconds_of(bound(draw, scene)) for scene in scenes)
        except Exception as error:
            failures.append((name, f"does not run: {first_line(error)}"))
            continue
        return CompiledDiffusers(name=name, draw=draw, seconds=seconds, failures=tuple(failures))
    return CompiledDiffusers(name="diffusers, torch.compile", draw=None, seconds=0.0, failures=tuple(failures))


def load_diffusers(dtype: torch.dtype = torch.float32) -> diffusers.ZImagePipeline:
    """Diffusers' pipeline of the embedded model."""
    pipeline = diffusers.ZImagePipeline.from_pretrained(embedded.PATH, dtype=dtype, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def bound(draw: Draw, scene: Scene) -> Callable[[], np.ndarray]:
    """A call without arguments."""
    return lambda: draw(scene)
