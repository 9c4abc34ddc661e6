"""A denoising step of DiffusionGemma beside transformers, on this CPU in float32, with random weights.

Both look at the same canvas behind the same prompt, with self-conditioning, in turn, and ten times each, as a text is
written: threads of the one before wait for work for a while, and take a core from the first steps. transformers runs
its experts in each of its own ways, of which some suit a CPU better than the default one. The first compilation of the
graphs is timed in a process of its own, with folders that hold nothing of one before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from benchmarks.measure import ROOT, Row, interleave, relative_l2
from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma
from tests.references.diffusion_gemmas import USUAL, load, write

TOGETHER = 10
EXPERTS = ("grouped_mm", "batched_mm", "eager")
"""How transformers computes the experts: what it loads a model with, and the others."""

_COLD = """
import sys, time
from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma
begin = time.perf_counter()
CompiledDiffusionGemma.from_pretrained(sys.argv[1], device="cpu")
print("SECONDS", time.perf_counter() - begin)
"""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model, and how many texts of which length are written at once."""

    text: Mapping[str, object]
    canvas: int
    prompt: int
    rows: tuple[int, ...]
    is_cold_timed: bool

    @property
    def sizes(self) -> str:
        """In words."""
        text = self.text
        layers, hidden = text["num_hidden_layers"], text["hidden_size"]
        experts = f"{text['top_k_experts']} of {text['num_experts']} experts"
        return f"{layers} layers of {hidden}, {experts}, canvas {self.canvas}, prompt {self.prompt}"


FULL = Shape(text=USUAL, canvas=32, prompt=100, rows=(1, 8), is_cold_timed=True)
QUICK = Shape(text=USUAL, canvas=32, prompt=12, rows=(1,), is_cold_timed=False)


def rows(shape: Shape, repeats: int) -> list[Row]:
    """Time steps on both sides, and the first compilation."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        write(directory, shape.text, shape.canvas, seed=0)
        seconds = _cold_seconds(directory) if shape.is_cold_timed else None
        ours, theirs = CompiledDiffusionGemma.from_pretrained(directory, device="cpu"), load(directory)
        return [row for count in shape.rows for row in _steps(shape, count, repeats, ours, theirs, seconds)]


def _steps(
    shape: Shape, count: int, repeats: int, ours: CompiledDiffusionGemma, theirs: Any, seconds: float | None
) -> list[Row]:
    rng = np.random.default_rng(0)
    ids = rng.integers(2, ours.vocab_size, (count, shape.prompt))
    canvas = rng.integers(0, ours.vocab_size, (count, shape.canvas))
    cache, every = ours.encode(ids, np.full(count, shape.prompt)), np.ones(count, bool)
    logits = ours.denoise(canvas, None, every, 0.8, cache).logits
    kept, given = DynamicCache(config=theirs.config.text_config), torch.tensor(logits.to_numpy())
    with torch.no_grad():
        theirs.model.encoder(input_ids=torch.tensor(ids), past_key_values=kept)

    def look() -> torch.Tensor:
        """What a step of `generate` computes: logits, likeliest tokens, entropies."""
        with torch.no_grad():
            found = theirs(
                past_key_values=kept, decoder_input_ids=torch.tensor(canvas), self_conditioning_logits=given
            ).logits
            z: torch.Tensor = found / 0.8
            torch.distributions.Categorical(logits=z).entropy()
            z.argmax(-1)
        return z

    def with_experts(way: str) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            theirs.set_experts_implementation(way)
            return look()

        return call

    calls: dict[str, Callable[[], Any]] = {f"transformers, {way}": with_experts(way) for way in EXPERTS}
    calls["max_zimage"] = lambda: ours.denoise(canvas, logits, every, 0.8, cache)
    timings = interleave(calls, repeats, together=TOGETHER)
    wanted = with_experts(EXPERTS[0])().numpy()
    error = relative_l2(calls["max_zimage"]().logits.to_numpy(), wanted)
    return [
        Row(
            case=f"a denoising step, {count} row{'s' if count > 1 else ''}",
            variant=name,
            dtype="float32",
            sizes=shape.sizes,
            timing=timing,
            compile_seconds=seconds if name == "max_zimage" else None,
            relative_l2=error if name == "max_zimage" else None,
            reference=name.endswith(EXPERTS[0]),
        )
        for name, timing in timings.items()
    ]


def _cold_seconds(directory: Path) -> float:
    """Seconds of the first load, in which the graphs are compiled.

    Raises:
        RuntimeError: If it fails.
    """
    with tempfile.TemporaryDirectory() as empty:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": paths, "MAX_ZIMAGE_CACHE": empty, "MODULAR_CACHE_DIR": empty}
        command = [sys.executable, "-c", _COLD, str(directory)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("SECONDS ")]
    if done.returncode or not found:
        raise RuntimeError(f"the first load failed: {done.stderr[-500:]}")
    return float(found[0].split()[1])
