"""What a picture was drawn with as AUTOMATIC1111's web UI writes it, and the `info` of its answers.

Reference: reference/scale-and-ux.md section 9; stable-diffusion-webui modules/infotext_utils.py, modules/processing.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from max_zimage.request.a1111_names import SAMPLER_LABELS, SHAPE_LABELS
from max_zimage.request.metadata import GenerationParameters
from max_zimage.version import PROGRAM


def cfg_scale(guidance_scale: float | Sequence[float]) -> float:
    """The scale that such tools know; the largest one of a list."""
    largest = max(guidance_scale) if isinstance(guidance_scale, Sequence) else guidance_scale
    return float(largest) + 1


def fields(parameters: GenerationParameters) -> dict[str, Any]:
    """The last line of the text, by name."""
    found: dict[str, Any] = {
        "Steps": parameters.num_inference_steps,
        "Sampler": SAMPLER_LABELS[parameters.sampler],
        "Schedule type": SHAPE_LABELS[parameters.sigma_shape],
        "CFG scale": f"{cfg_scale(parameters.guidance_scale):g}",
        "Seed": parameters.seed,
        "Size": f"{parameters.width}x{parameters.height}",
        "Model": parameters.model.rstrip("/").rpartition("/")[2],
    }
    if parameters.strength is not None:
        found["Denoising strength"] = f"{parameters.strength:g}"
    if parameters.variation_strength:
        found["Variation seed"] = parameters.variation_seed
        found["Variation seed strength"] = f"{parameters.variation_strength:g}"
    return found | {"Version": f"{PROGRAM} {parameters.version}"}


def infotext(parameters: GenerationParameters) -> str:
    """The text: the prompt, the negative prompt, and the rest on a line."""
    tags = "".join(
        f" <lora:{each['name'].removesuffix('.safetensors')}:{each['scale']:g}>" for each in parameters.loras
    )
    lines = [f"{parameters.prompt}{tags}"]
    if parameters.negative_prompt:
        lines.append(f"Negative prompt: {parameters.negative_prompt}")
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in fields(parameters).items())])


def info(pictures: Sequence[GenerationParameters], given: Mapping[str, Any]) -> str:
    """What an answer says of its pictures, as JSON.

    Args:
        pictures: Of each picture.
        given: The request's body.
    """
    first = pictures[0]
    second = [-1 if each.variation_seed is None else each.variation_seed for each in pictures]
    said = {
        "prompt": first.prompt,
        "all_prompts": [each.prompt for each in pictures],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [each.negative_prompt for each in pictures],
        "seed": first.seed,
        "all_seeds": [each.seed for each in pictures],
        "subseed": second[0],
        "all_subseeds": second,
        "subseed_strength": first.variation_strength,
        "width": first.width,
        "height": first.height,
        "sampler_name": SAMPLER_LABELS[first.sampler],
        "scheduler": SHAPE_LABELS[first.sigma_shape],
        "cfg_scale": cfg_scale(first.guidance_scale),
        "steps": first.num_inference_steps,
        "batch_size": given.get("batch_size") or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": fields(first)["Model"],
        "sd_model_hash": "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.strength,
        "extra_generation_params": {"Schedule type": SHAPE_LABELS[first.sigma_shape]},
        "index_of_first_image": 0,
        "infotexts": [infotext(each) for each in pictures],
        "styles": given.get("styles") or [],
        "job_timestamp": "0",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": fields(first)["Version"],
    }
    return json.dumps(said, ensure_ascii=False)


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text
