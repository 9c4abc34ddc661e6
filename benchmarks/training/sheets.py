"""Sheets of samples: what a model in training, or a finished one, makes of scenes it has never seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import PreTrainedTokenizerBase

from benchmarks.training.autoencoder import pixels_of
from benchmarks.training.evaluation import score, unseen_scenes
from benchmarks.training.flow import sample
from benchmarks.training.transformer import Captions, Model

STEPS = 8
_EACH = 24
_SIDE = 128
_GAP = 4


def sheet(pictures: npt.NDArray[np.uint8], columns: int) -> Image.Image:
    """Pictures of one size, uint8 [n, height, width, 3], in rows on white."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    whole = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // columns * (height + _GAP), index % columns * (width + _GAP)
        whole[y : y + height, x : x + width] = picture
    return Image.fromarray(whole)


def sheet_name(setting: str) -> str:
    """File of the pictures of one setting."""
    return f"{setting.replace(', ', '-').replace(' ', '-')}.png"


def watch(folder: Path, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerBase) -> Callable[[Model, int], None]:
    """Draw a sheet of one and two objects during training, and say how many of them are right."""
    scenes = unseen_scenes(1, _EACH) + unseen_scenes(2, _EACH)
    captions = Captions.of(tokenizer, [scene.caption for scene in scenes])
    noise = torch.randn(len(scenes), 16, _SIDE // 8, _SIDE // 8, generator=torch.Generator().manual_seed(5))

    def show(model: Model, step: int) -> None:
        latents = sample(model, captions, noise, STEPS)
        pictures = pixels_of(vae, latents)
        sheet(pictures, _EACH // 2).save(folder / f"samples-{step:06d}.png")
        right: list[int] = []
        for begin in (0, _EACH):
            quality = score(scenes[begin : begin + _EACH], pictures[begin : begin + _EACH])
            right += [round(_EACH * share) for share in (quality.color_right or 0, quality.shape_right or 0)]
        print(
            f"step {step}: of {_EACH} pictures each, one object: colours {right[0]}, shapes {right[1]}; "
            f"two objects: colours {right[2]}, shapes {right[3]}",
            flush=True,
        )

    return show
