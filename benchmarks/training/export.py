"""The trained parts as a checkpoint in the layout of diffusers, in bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline
from transformers import AutoTokenizer

from benchmarks.training.flow import SHIFT
from benchmarks.training.transformer import Model

LARGEST_BYTES = 24_000_000
DEFAULTS = {"guidance_scale": 2.0, "num_inference_steps": 8}
"""What the engine draws with where a request says nothing."""


def export(directory: Path, vae: AutoencoderKL, tokenizer: Path, model: Model) -> int:
    """Write the checkpoint over what was there.

    Args:
        directory: Where to.
        vae: Becomes bfloat16, as `model` does.
        tokenizer: Folder of its files, taken as they are: a tokenizer in use keeps its last padding for good.
        model: Text encoder and transformer.

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
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        transformer=model.transformer,
    ).to(torch.bfloat16)
    pipeline.save_pretrained(unfinished)
    shutil.rmtree(unfinished / "tokenizer")
    shutil.copytree(tokenizer, unfinished / "tokenizer")
    index = unfinished / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8")) | {
        "_generation_defaults": DEFAULTS,
        # The name that every version of transformers knows.
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    index.write_text(json.dumps(parts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    if size > LARGEST_BYTES:
        raise ValueError(f"the checkpoint must have at most {LARGEST_BYTES:,} bytes, has {size:,}: {directory}")
    return size
