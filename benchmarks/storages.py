"""What quantized weights are worth: pictures of the embedded model beside those of whole weights, and their memory.

Beside the storages in memory stands a file of the transformer in Q8_0, which is decoded when it is loaded: it is what
eight bits mean to most people. What a GPU keeps in eight bits is drawn from the same weights, decoded before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.measure import Row
from benchmarks.quality.cases import Prompt, scene_prompts
from benchmarks.quality.draws import Drawn
from benchmarks.quality.scores import Lpips, Sample, Scorer
from benchmarks.quality.scores import rows as as_rows
from benchmarks.storage_errors import FILES
from max_zimage import ZImagePipeline, convert
from max_zimage.graphs.linear import Storage
from max_zimage.pipeline.manifest import CheckpointManifest

STORAGES = (
    "text_encoder=int8",
    "text_encoder=q4",
    "transformer=int8",
    "transformer=q4",
    "text_encoder=int8,transformer=int8",
    "text_encoder=q4,transformer=int8",
)
WHOLE = "whole weights"
FILE = "transformer in Q8_0"
OF_A_GPU = "int8 of a GPU, both components"
FULL, QUICK = 32, 2
"""Pictures of each."""
CALL: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 8, "guidance_scale": 2.0}


def rows(pictures: int, lpips: Path | None) -> list[Row]:
    """Draw the same pictures with each storage; one picture of a prompt.

    Args:
        pictures: Of each storage.
        lpips: As `--lpips` of `make quality`.

    Raises:
        ValueError: If that file has not AlexNet's weights, or the package is not there.
    """
    scorer = Scorer(lpips=None if lpips is None else Lpips(lpips))
    with tempfile.TemporaryDirectory() as folder:
        return drawn_by(ways(Path(folder), STORAGES), scene_prompts(pictures), scorer)


def ways(folder: Path, storages: Sequence[str]) -> dict[str, Callable[[], ZImagePipeline]]:
    """What is compared -> what loads it; whole weights come first.

    Args:
        folder: Where files of weights are written.
        storages: In memory.
    """
    file = folder / "transformer.gguf"
    convert(None, file, layout="gguf", type="q8_0", components=("transformer",))
    load = partial(ZImagePipeline.from_pretrained, device="cpu")
    decoded = [_decoded(component, folder) for component in ("transformer", "text_encoder")]
    given: dict[str, dict[str, Any]] = {
        WHOLE: {},
        FILE: {"weight_path": file},
        OF_A_GPU: {"weight_path": decoded},
    }
    given |= {storage: {"quantize": storage} for storage in storages}
    return {name: partial(load, **{"quantize": ""} | each) for name, each in given.items()}


def _decoded(component: str, folder: Path) -> Path:
    """The embedded model's weights in float32, matrices as a GPU has them that keeps them in eight bits."""
    plan = replace(ZImagePipeline.prepare(device="cpu").sources.plans[component], kept_as="int8_rows")
    narrow = {part.name for each in plan.recipes if plan.codes(each) is not None for part in each.parts}
    rounded, weights = FILES["int8 by row"], dict[str, torch.Tensor]()
    for file in plan.files:
        for name, values in load_file(file).items():
            weights[name] = rounded(values.float()) if name in narrow else values.float()
    path = folder / component / "decoded.safetensors"
    path.parent.mkdir()
    save_file(weights, path)
    return path


def _nbytes(name: str, sources: CheckpointManifest) -> int:
    """Memory of the weights; where they were decoded, of what they were."""
    both: dict[str, Storage] = {"transformer": "int8_rows", "text_encoder": "int8_rows"}
    return sum((sources.with_storages(both) if name == OF_A_GPU else sources).nbytes.values())


def drawn_by(
    loaders: Mapping[str, Callable[[], ZImagePipeline]], prompts: Sequence[Prompt], scorer: Scorer
) -> list[Row]:
    """A row for each storage.

    Args:
        loaders: From `ways`; all are compared with the first.
        prompts: What is drawn.
        scorer: Compares pictures.
    """
    expected, nbytes, samples = dict[Prompt, Drawn](), dict[str, float](), list[Sample]()
    for name, load in loaders.items():
        pipeline = load()
        nbytes[name] = _nbytes(name, pipeline.sources) / 2**20
        _draw(pipeline, prompts[0])  # what comes once
        for prompt in prompts:
            drawn = _draw(pipeline, prompt)
            whole = expected.setdefault(prompt, drawn)
            samples.append(scorer.sample("quantized weights", name, "128x128", prompt, drawn, whole.pixels))
    measured = as_rows(samples, "float32")
    return [replace(row, peak_mib=nbytes[row.variant], reference=row.variant == WHOLE) for row in measured]


def _draw(pipeline: ZImagePipeline, prompt: Prompt) -> Drawn:
    begin = time.perf_counter()
    pixels = np.asarray(pipeline(prompt.text, seed=prompt.seed, output_type="np", **CALL))[0]
    return Drawn(pixels=pixels, seconds=time.perf_counter() - begin, skipped=0.0)
