"""What each addition to Euler with classifier-free guidance costs in a step: the embedded model on a CPU.

A call is the denoising of one picture, without its text encoder, encoder and decoder, and compiles nothing. Rows of a
case have the same number of steps; how often the model is evaluated, and for how many branch rows, is in the note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import Row, interleave
from max_zimage import ZImagePipeline
from max_zimage.pipeline.batch import Later, ZImageModelInputs
from max_zimage.pipeline.encoding import inputs_of_texts
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.names import SAMPLERS

_PROMPT = "a red star on a blue background"
Fields = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Side of the picture, and steps."""

    side: int
    steps: int


FULL = Sizes(side=256, steps=8)
QUICK = Sizes(side=64, steps=4)


def ways(side: int) -> Mapping[str, Mapping[str, Fields]]:
    """Case -> what is added, the first row of each to what the others are compared with."""
    image, mask = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2] = 255
    return {
        "guided": {
            "Euler": {},
            **{name: {"sampler": name} for name in SAMPLERS if name != "euler"},
            "guidance_interval 0 to 0.5": {"guidance_interval": (0.0, 0.5)},
            "cfg_zero_star": {"guidance_variant": "cfg_zero_star"},
            "apg": {"guidance_variant": "apg"},
            "guidance_rescale": {"guidance_rescale": 0.7},
            "slg": {"slg": True},
            "dype": {"dype": "vision_yarn", "dype_base_resolution": side // 2},
            "progressive 0.5": {"progressive": 0.5},
        },
        "not guided": {
            "Euler": {"guidance_scale": 0.0},
            "slg": {"guidance_scale": 0.0, "slg": True},
            "nag_scale": {"guidance_scale": 0.0, "nag_scale": 5.0},
            "nag_scale, nag_sigma_end 0.75": {"guidance_scale": 0.0, "nag_scale": 5.0, "nag_sigma_end": 0.75},
        },
        "from an image": {
            "Euler": {"image": image, "strength": 1.0},
            "mask_image": {"image": image, "strength": 1.0, "mask_image": mask},
            "soft_mask": {"image": image, "strength": 1.0, "mask_image": mask // 2, "soft_mask": True},
        },
    }


def rows(sizes: Sizes, repeats: int) -> list[Row]:
    """Measure."""
    pipeline = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
    return [row for case, added in ways(sizes.side).items() for row in _rows(pipeline, sizes, case, added, repeats)]


def _rows(pipeline: ZImagePipeline, sizes: Sizes, case: str, added: Mapping[str, Fields], repeats: int) -> list[Row]:
    made = {name: inputs_of(pipeline, sizes, fields) for name, fields in added.items()}

    def denoise(inputs: ZImageModelInputs) -> None:
        pipeline.denoising(inputs).run()
        pipeline.device.synchronize()

    calls: dict[str, Callable[[], object]] = {name: partial(denoise, inputs) for name, inputs in made.items()}
    timings = interleave(calls, repeats)
    return [
        Row(
            case=case,
            variant=name,
            dtype="float32",
            sizes=f"{sizes.side}x{sizes.side}, {sizes.steps} steps",
            timing=timings[name],
            reference=name == "Euler",
            note=_evaluations(inputs),
        )
        for name, inputs in made.items()
    ]


def inputs_of(pipeline: ZImagePipeline, sizes: Sizes, fields: Fields) -> ZImageModelInputs:
    """A batch, ready to be denoised, of a prompt and what is added."""
    sources = pipeline.sources
    asked: dict[str, Any] = {"prompt": _PROMPT, "height": sizes.side, "width": sizes.side, "seed": 1}
    asked |= {"num_inference_steps": sizes.steps, "guidance_scale": 2.0, **fields}
    request = GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **asked)
    parts = pipeline.tokenizer, pipeline.text_encoder, pipeline.transformer, pipeline.vae
    return inputs_of_texts(request, sources, *parts)


def _evaluations(inputs: ZImageModelInputs) -> str:
    legs: list[ZImageModelInputs | Later] = [inputs, *inputs.later]
    count = sum(leg.evaluations.count for leg in legs)
    active = sum(len(leg.guidance.active(index)) for leg in legs for index in range(leg.evaluations.count))
    return f"{count} evaluations, {active} branch rows"
