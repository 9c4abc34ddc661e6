"""Pictures of the published size: the cases, how our pipeline draws them, and the work in them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device

from benchmarks.checkpoints.shapes import TURBO_SHIFT
from benchmarks.gpu_run import checkpoint
from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.stages.checkpoint import SECONDS
from max_zimage import ZImagePipeline
from max_zimage.compile import work
from max_zimage.compile.compiler import CompiledGraph
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.sampling.positions import PIXELS_PER_TOKEN, padded
from tests.references.noises import initial_noise

PROMPT = (
    "A lighthouse on a cliff above a stormy sea at dusk, long exposure, a narrow path of wet stones leading up to it, "
    "warm light in its windows, gulls against dark clouds"
)
_SEED = 1

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is drawn, with Z-Image-Turbo's schedule."""

    side: int
    steps: int
    repeats: int

    @property
    def name(self) -> str:
        """Of the case in tables and files."""
        return f"Turbo {self.side}x{self.side}"

    @property
    def sizes(self) -> str:
        """In words."""
        return f"{self.side}x{self.side}, {self.steps} steps"

    @property
    def noise(self) -> npt.NDArray[np.float32]:
        """Starting latents, float32 [1, 16, side/8, side/8]."""
        return initial_noise(_SEED, 1, 16, self.side, self.side)

    def file(self, bench: Bench) -> Path:
        """Where our picture is kept for the peers."""
        return bench.work / f"Turbo-{self.side}{'-small' if bench.small else ''}.npy"


def cases(bench: Bench) -> tuple[Case, ...]:
    """What is drawn, the more valuable first: eight forwards are what the nine steps of other engines run."""
    if bench.small:
        return (Case(side=128, steps=2, repeats=1), Case(side=64, steps=2, repeats=1))
    return (Case(side=1024, steps=8, repeats=5), Case(side=512, steps=8, repeats=7))


def pipeline(bench: Bench) -> ZImagePipeline:
    """Ours on the checkpoint, loaded once a process."""
    return bench.once("pipeline", lambda: _load(bench))


def _load(bench: Bench) -> ZImagePipeline:
    folder = checkpoint.wait(bench.work, small=bench.small, seconds=SECONDS)
    return ZImagePipeline.from_pretrained(folder, device="cpu" if bench.small else "gpu", dtype=bench.dtype)


def draw(bench: Bench, case: Case, **more: Any) -> Picture:
    """Draw with our pipeline; the picture is on the host, uint8 [side, side, 3].

    Raises:
        ValueError: If every value of it is the same: something on the way is not a number.
    """
    images = pipeline(bench)(
        PROMPT,
        height=case.side,
        width=case.side,
        num_inference_steps=case.steps,
        guidance_scale=0.0,
        shift=TURBO_SHIFT,
        latents=case.noise,
        output_type="np",
        **more,
    )
    picture: Picture = np.asarray(images)[0]
    if picture.std() == 0:
        raise ValueError(f"every value of the picture is {picture.flat[0]}: not-a-number somewhere on the way")
    return picture


@contextmanager
def timed_graphs(device: Device) -> Iterator[dict[str, list[float]]]:
    """Time every compiled graph that runs inside the block, waiting for the device before and after each.

    Yields:
        Graph -> seconds of its calls. Waiting costs what the queue would have hidden: the sum is no end-to-end time.
    """
    seconds: dict[str, list[float]] = {}
    run = CompiledGraph.__call__

    def timed(graph: CompiledGraph, *inputs: Buffer) -> list[Buffer]:
        device.synchronize()
        begin = time.perf_counter()
        outputs = run(graph, *inputs)
        device.synchronize()
        seconds.setdefault(graph.name, []).append(time.perf_counter() - begin)
        return outputs

    with patch.object(CompiledGraph, "__call__", timed):
        yield seconds


def step_gflop(spec: TransformerSpec, case: Case, caption_tokens: int) -> float:
    """Work of one step in 10^9 operations: products of matrices, attention's two included.

    Args:
        spec: Shape of the transformer.
        case: The picture.
        caption_tokens: Of the prompt.
    """
    image = padded((case.side // PIXELS_PER_TOKEN) ** 2)
    both = image + padded(caption_tokens)
    refined, main = (work.block(spec, 1, tokens, size=0).flops for tokens in (image, both))
    ends = 2 * work.linear(image, spec.patch_dim, spec.dim, size=0).flops
    return 1e-9 * (spec.num_refiner_layers * refined + spec.num_layers * main + ends)
