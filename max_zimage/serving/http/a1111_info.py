"""The `info` of AUTOMATIC1111's answers: what pictures were drawn with, by its names.

Reference: reference/scale-and-ux.md section 9; stable-diffusion-webui modules/processing.py (Processed.js).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from max_zimage.images.hires import first_steps, hires_of
from max_zimage.images.infotext import write_infotext
from max_zimage.request.a1111_names import SAMPLER_LABELS, SHAPE_LABELS
from max_zimage.sampling.other_names import cfg_scale_of
from max_zimage.version import PROGRAM


def info(
    pictures: Sequence[Mapping[str, Any]],
    given: Mapping[str, Any],
    more: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """What an answer says of its pictures, as JSON.

    Args:
        pictures: Of each picture, as the JSON of `max_zimage.request.metadata.GenerationParameters` has it.
        given: The request's body.
        more: Names and values of the text that other tools read, beside what it was drawn with.
    """
    first = pictures[0]
    hires = hires_of(first)
    seconds = [-1 if each["variation_seed"] is None else each["variation_seed"] for each in pictures]
    shape = SHAPE_LABELS[first["sigma_shape"]]
    said = {
        "prompt": first["prompt"],
        "all_prompts": [each["prompt"] for each in pictures],
        "negative_prompt": first["negative_prompt"],
        "all_negative_prompts": [each["negative_prompt"] for each in pictures],
        "seed": first["seed"],
        "all_seeds": [each["seed"] for each in pictures],
        "subseed": seconds[0],
        "all_subseeds": seconds,
        "subseed_strength": first["variation_strength"],
        "width": first["width"],
        "height": first["height"],
        "sampler_name": SAMPLER_LABELS[first["sampler"]],
        "scheduler": shape,
        "cfg_scale": cfg_scale_of(first["guidance_scale"]),
        "steps": first_steps(first),
        "batch_size": given.get("batch_size") or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first["model"].rstrip("/").rpartition("/")[2],
        "sd_model_hash": "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first["strength"] if hires is None else hires.strength,
        "extra_generation_params": {"Schedule type": shape} | ({} if hires is None else hires.pairs()) | dict(more),
        "index_of_first_image": 0,
        "infotexts": [write_infotext(each, more) for each in pictures],
        "styles": given.get("styles") or [],
        "job_timestamp": "0",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"{PROGRAM} {first['version']}",
    }
    return json.dumps(said, ensure_ascii=False)
