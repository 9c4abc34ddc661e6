"""What the stages at the full size have in common: the cases, the checkpoint, how both engines are called, the work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from max.driver import Buffer, Device

from benchmarks.checkpoints.shapes import BASE_SHIFT, TURBO_SHIFT
from benchmarks.measure import ask, seconds_of
from benchmarks.stages.stage import Stage
from max_zimage import ZImagePipeline
from max_zimage.checkpoint import ModelDtype
from max_zimage.compiler import CompiledGraph
from max_zimage.graphs.transformer import TransformerSpec
from max_zimage.noise import initial_noise
from max_zimage.positions import PIXELS_PER_TOKEN, padded

PROMPT = (
    "A lighthouse on a cliff above a stormy sea at dusk, long exposure, a narrow path of wet stones leading up to it, "
    "warm light in its windows, gulls against dark clouds"
)
CHECKPOINT = "checkpoint"
"""Folder in the work folder that holds the checkpoint."""
_SEED = 1

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is drawn: the model's name says the schedule, the weights are the same."""

    model: str
    side: int
    steps: int
    guidance: float
    shift: float
    repeats: int

    @property
    def name(self) -> str:
        """Of the case in tables and files."""
        return f"{self.model} {self.side}x{self.side}"

    @property
    def sizes(self) -> str:
        """In words."""
        return f"{self.side}x{self.side}, {self.steps} steps, guidance {self.guidance:g}"

    @property
    def noise(self) -> npt.NDArray[np.float32]:
        """Starting latents, float32 [1, 16, side/8, side/8]."""
        return initial_noise(_SEED, 1, 16, self.side, self.side)


_FULL = (
    Case(model="Turbo", side=1024, steps=8, guidance=0.0, shift=TURBO_SHIFT, repeats=7),
    Case(model="Turbo", side=512, steps=8, guidance=0.0, shift=TURBO_SHIFT, repeats=10),
    Case(model="base", side=1024, steps=50, guidance=4.0, shift=BASE_SHIFT, repeats=2),
)
_SMALL = (
    Case(model="Turbo", side=128, steps=2, guidance=0.0, shift=TURBO_SHIFT, repeats=2),
    Case(model="Turbo", side=64, steps=2, guidance=0.0, shift=TURBO_SHIFT, repeats=2),
    Case(model="base", side=128, steps=4, guidance=4.0, shift=BASE_SHIFT, repeats=1),
)


def cases(stage: Stage) -> tuple[Case, ...]:
    """The cases of a stage."""
    return _SMALL if stage.small else _FULL


def dtype(stage: Stage) -> ModelDtype:
    """Of weights and computation."""
    return "float32" if stage.small else "bfloat16"


def load(stage: Stage) -> ZImagePipeline:
    """Our pipeline on the stage's checkpoint.

    Raises:
        ValueError: If there is no checkpoint, or no GPU and the stage is not small.
    """
    begin = time.perf_counter()
    folder, device = checkpoint(stage), "cpu" if stage.small else "gpu"
    pipeline = ZImagePipeline.from_pretrained(folder, device=device, dtype=dtype(stage))
    stage.log(f"our pipeline is ready after {time.perf_counter() - begin:.1f} s")
    return pipeline


def checkpoint(stage: Stage) -> Path:
    """The checkpoint's folder, which the stage `model` fills."""
    return stage.work / f"{CHECKPOINT}{'-small' if stage.small else ''}"


def draw(pipeline: ZImagePipeline, case: Case, prompt: str = PROMPT, **more: Any) -> Picture:
    """Draw with our pipeline; the picture is on the host, uint8 [side, side, 3]."""
    images = pipeline(
        prompt,
        height=case.side,
        width=case.side,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        shift=case.shift,
        latents=case.noise,
        output_type="np",
        **more,
    )
    return np.asarray(images)[0]


def picture_file(stage: Stage, case: Case) -> Path:
    """Where our picture of a case is kept for the other stages."""
    return stage.work / f"{case.name.replace(' ', '-')}{'-small' if stage.small else ''}.npy"


def repeated(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of calls after one that is not counted."""
    call()
    return [seconds_of(call) for _ in range(repeats)]


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
    """Work of one denoising step in 10^9 floating-point operations: products of matrices, attention's two included.

    Args:
        spec: Shape of the transformer.
        case: Its guidance doubles the work: two captions, each with the picture.
        caption_tokens: Tokens of the prompt; the empty one has fewer, and is padded to as many.
    """
    image = padded((case.side // PIXELS_PER_TOKEN) ** 2)
    both = image + padded(caption_tokens)

    def block(tokens: int) -> float:
        products = 2 * tokens * (4 * spec.dim**2 + 3 * spec.dim * spec.ffn_dim)
        return products + 4 * tokens**2 * spec.dim

    ends = 2 * 2 * image * spec.patch_dim * spec.dim
    once = spec.num_refiner_layers * block(image) + spec.num_layers * block(both) + ends
    return 1e-9 * once * (2 if case.guidance > 0 else 1)


def roof(stage: Stage) -> float:
    """GFLOP/s of one large product of matrices in torch, in the stage's dtype on its device."""
    side = 512 if stage.small else 8192
    device = torch.device("cpu" if stage.small else "cuda")
    left, right = (torch.randn(side, side, device=device).to(getattr(torch, dtype(stage))) for _ in range(2))

    def product() -> None:
        left @ right
        synchronize(device)

    product()
    return 2e-9 * side**3 / statistics.median(seconds_of(product) for _ in range(10))


def synchronize(device: torch.device) -> None:
    """Wait for torch's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def used_mib(stage: Stage) -> float:
    """Memory in use now: of the GPU by everything on it, or this process' largest on a CPU."""
    if not stage.small:
        said = ask("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
        return max((float(line) for line in said.splitlines()), default=0.0)
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
