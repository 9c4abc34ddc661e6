"""The trained parts as a checkpoint in the layout of diffusers, in bfloat16."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline
from transformers import PreTrainedTokenizerBase

from benchmarks.embedded_model.flow import SHIFT
from benchmarks.embedded_model.transformer import Model

LARGEST_BYTES = 24_000_000


def export(directory: Path, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerBase, model: Model) -> int:
    """Write the checkpoint over what was there.

    Returns:
        Its size in bytes.

    Raises:
        ValueError: If it is larger than a package should carry; it stays where it was written.
    """
    unfinished = directory.with_name(directory.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        transformer=model.transformer,
    ).to(torch.bfloat16)
    pipeline.save_pretrained(unfinished)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    if size > LARGEST_BYTES:
        raise ValueError(f"the checkpoint must have at most {LARGEST_BYTES:,} bytes, has {size:,}: {directory}")
    return size
