"""The reference's side of `max-zimage verify`: diffusers' pipeline, a component at a time, in its own process.

    python -m max_zimage.diagnosis.reference JOB.json

Prints a line for each part that is done, and leaves the values of all stages beside the job. This is the one file of
the package that imports PyTorch and diffusers, which need not be installed for anything else.

Reference: diffusers pipelines/z_image/pipeline_z_image.py and models/transformers/transformer_z_image.py.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ZImagePipeline

from max_zimage.device.dtypes import ModelDtype
from max_zimage.diagnosis.asked import GUIDANCE, Asked, read_job, write_values

Found = dict[str, Any]


def main(file: str) -> int:
    """Run a job."""
    directory, asked = read_job(Path(file))
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    values: dict[ModelDtype, Found] = {dtype: {} for dtype in asked.dtypes}
    base = values[asked.dtypes[0]]
    with torch.no_grad():
        for stages in (_texts, _steps, _pictures):
            for dtype in asked.dtypes:
                values[dtype] |= stages(directory, asked, getattr(torch, dtype), base)
                gc.collect()
                print(f"{dtype} {stages.__name__.strip('_')}", flush=True)
    for dtype, found in values.items():
        write_values(Path(file).parent, dtype, found)
    return 0


def _texts(directory: Path, asked: Asked, dtype: torch.dtype, base: Found) -> Found:
    """Token ids and text features of both prompts."""
    pipeline = _loaded(directory, dtype, transformer=None, vae=None)
    tokens: list[npt.NDArray[Any]] = []

    def keep(module: object, arguments: object, named: Mapping[str, Any]) -> None:
        tokens.extend(ids[mask].numpy() for ids, mask in zip(named["input_ids"], named["attention_mask"], strict=True))

    handle = pipeline.text_encoder.register_forward_pre_hook(keep, with_kwargs=True)
    positive, negative = pipeline.encode_prompt([asked.prompts[0]], negative_prompt=[asked.prompts[1]])
    handle.remove()
    features = [item.float().numpy() for item in (*positive, *negative)]
    lengths = np.array([len(each) for each in tokens])
    return {"tokens": np.concatenate(tokens), "lengths": lengths, "features": np.concatenate(features)}


def _steps(directory: Path, asked: Asked, dtype: torch.dtype, base: Found) -> Found:
    """What the transformer makes of the first noise, and the latents after all steps."""
    pipeline = _loaded(directory, dtype, text_encoder=None, tokenizer=None, vae=None)
    cut = np.split(base["features"], np.cumsum(base["lengths"])[:-1])
    positive, negative = ([torch.from_numpy(each).to(dtype)] for each in cut)
    recorded = _Recorded(pipeline.transformer)
    latents = pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        latents=torch.from_numpy(asked.noise()),
        height=asked.height,
        width=asked.width,
        num_inference_steps=asked.steps,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).images
    return {
        "schedule": pipeline.scheduler.sigmas.float().numpy(),
        **recorded.stages(asked.height * asked.width // 256, [len(each) for each in cut]),
        "latents": latents.float().numpy(),
    }


def _pictures(directory: Path, asked: Asked, dtype: torch.dtype, base: Found) -> Found:
    """The most exact latents as a picture, uint8 [1, height, width, 3]."""
    pipeline = _loaded(directory, dtype, text_encoder=None, tokenizer=None, transformer=None)
    config = pipeline.vae.config
    latents = torch.from_numpy(base["latents"]).to(dtype) / config.scaling_factor + config.shift_factor
    image = pipeline.image_processor.postprocess(pipeline.vae.decode(latents, return_dict=False)[0], output_type="np")
    return {"pixels": np.round(image * 255).astype(np.uint8)}  # as VaeImageProcessor does for "pil"


def _loaded(directory: Path, dtype: torch.dtype, **without: None) -> Any:
    pipeline: Any = ZImagePipeline
    loaded = pipeline.from_pretrained(directory, dtype=dtype, local_files_only=True, **without)
    loaded.set_progress_bar_config(disable=True)
    return loaded


class _Recorded:
    """What a transformer computes in its first call, of which every modulated block is seen through the final layer."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._values: Found = {}
        modulated = [*transformer.noise_refiner, *transformer.layers]
        named = {"caption tokens": transformer.context_refiner[-1], "timestep": transformer.t_embedder}
        named |= {f"block {index}": block for index, block in enumerate(modulated)} | {"velocity": transformer}
        for name, module in named.items():
            module.register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: object, arguments: object, value: Any) -> None:
            self._values.setdefault(name, value)

        return hook

    def stages(self, image_tokens: int, lengths: list[int]) -> Found:
        """The values, float32; rows of both branches behind each other."""
        values = self._values
        captions = values["caption tokens"].float().numpy()
        shown = [item[: -(-length // 32) * 32] for item, length in zip(captions, lengths, strict=True)]
        velocity = np.stack([item.squeeze(1).float().numpy() for item in values["velocity"][0]])
        blocks = {
            name: self._projected(hidden[:, :image_tokens])
            for name, hidden in values.items()
            if name.startswith("block")
        }
        return {"caption tokens": np.concatenate(shown), **blocks, "velocity": _packed(velocity)}

    def _projected(self, hidden: torch.Tensor) -> npt.NDArray[np.float32]:
        """A hidden state [items, tokens, dim] through the final layer."""
        made = self._transformer.all_final_layer["2-1"](hidden, c=self._values["timestep"])
        result: npt.NDArray[np.float32] = made.float().numpy()
        return result


def _packed(latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[items, channels, height, width] as image tokens, [items, height/2 · width/2, 4 · channels], channels fastest."""
    items, channels, height, width = latents.shape
    squares = latents.reshape(items, channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 3, 5, 1)
    return np.ascontiguousarray(squares).reshape(items, height * width // 4, 4 * channels)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
