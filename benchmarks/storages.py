"""What quantized weights are worth: pictures of the embedded model beside those of whole weights, and their memory."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.measure import Row
from benchmarks.quality.cases import Prompt, scene_prompts
from benchmarks.quality.draws import Drawn
from benchmarks.quality.scores import Sample, Scorer
from benchmarks.quality.scores import rows as as_rows
from max_zimage import ZImagePipeline

STORAGES = (
    "text_encoder=int8",
    "text_encoder=q4",
    "transformer=int8",
    "transformer=q4",
    "text_encoder=int8,transformer=int8",
    "text_encoder=q4,transformer=int8",
)
WHOLE = "whole weights"
FULL, QUICK = 32, 2
"""Pictures of each."""
CALL: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 8, "guidance_scale": 2.0}


def rows(pictures: int, repeats: int) -> list[Row]:
    """Draw the same pictures with each storage; one picture of a prompt, whatever the repeats are."""
    del repeats
    prompts, expected = scene_prompts(pictures), dict[Prompt, Drawn]()
    samples: list[Sample] = []
    nbytes = {}
    for storage in ("", *STORAGES):
        pipeline = ZImagePipeline.from_pretrained(device="cpu", quantize=storage)
        nbytes[storage or WHOLE] = sum(pipeline.sources.nbytes.values()) / 2**20
        _draw(pipeline, prompts[0])  # what comes once
        for prompt in prompts:
            drawn = _draw(pipeline, prompt)
            whole = expected.setdefault(prompt, drawn)
            name = storage or WHOLE
            samples.append(Scorer().sample("quantized weights", name, "128x128", prompt, drawn, whole.pixels))
    measured = as_rows(samples, "float32")
    return [replace(row, peak_mib=nbytes[row.variant], reference=row.variant == WHOLE) for row in measured]


def _draw(pipeline: ZImagePipeline, prompt: Prompt) -> Drawn:
    begin = time.perf_counter()
    pixels = np.asarray(pipeline(prompt.text, seed=prompt.seed, output_type="np", **CALL))[0]
    return Drawn(pixels=pixels, seconds=time.perf_counter() - begin, skipped=0.0)
