"""The whole training: pictures, tokenizer, autoencoder, latents, text encoder and transformer, checkpoint."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.training import autoencoder, flow, pictures
from benchmarks.training.export import export
from benchmarks.training.sheets import watch
from benchmarks.training.tokenizer import train_tokenizer
from benchmarks.training.training import Plan
from benchmarks.training.transformer import Model, new_text_encoder, new_transformer

P = TypeVar("P", bound=Plan)

PICTURES = 24_000
CROPS = Plan(steps=1800, batch=16, rate=4e-3, warmup=20)
DECODER = Plan(steps=400, batch=16, rate=3e-3, warmup=20)
FLOW = Plan(steps=7000, batch=40, rate=3e-3, warmup=200, decay=0.5)


def train(work: Path, checkpoint: Path, *, share: float, device: str, threads: int) -> None:
    """Make everything that is not there yet.

    Args:
        work: For pictures, states to go on from, curves and sheets.
        checkpoint: Where the finished model goes.
        share: Of pictures and steps; 1 is the model that is shipped.
        device: Where to train, as torch names it.
        threads: Of the CPU. Beside a GPU all of them paint, and training has two: more would wait for each other
            around operations that take microseconds.
    """
    torch.set_num_threads(threads if device == "cpu" else min(threads, 2))
    begin = time.monotonic()

    def tell(stage: str) -> None:
        print(f"## {stage} ({(time.monotonic() - begin) / 60:.1f} min)", flush=True)

    tell("pictures")
    painted = _pictures(work / "pictures", max(400, round(PICTURES * share)), threads)
    tell("tokenizer")
    tokenizer = _tokenizer(work / "tokenizer")
    tell("autoencoder, crops")
    vae = autoencoder.train_on_crops(work / "crops", painted, scaled(CROPS, share, device))
    tell("autoencoder, decoder")
    vae = autoencoder.train_decoder(work / "decoder", vae, painted, scaled(DECODER, share, device))
    tell("latents")
    latents = flow.encode_all(vae, tokenizer, painted, work / "latents.pt")
    tell("text encoder and transformer")
    model = Model(new_text_encoder(len(tokenizer)), new_transformer())
    folder = work / "flow"
    folder.mkdir(exist_ok=True)
    model = flow.train(folder, model, latents, scaled(FLOW, share, device), watch(folder, vae, tokenizer))
    size = export(checkpoint, vae, work / "tokenizer", model)
    torch.set_num_threads(threads)  # two are for training beside a GPU alone
    tell(f"checkpoint of {size / 1e6:.1f} MB: {checkpoint}")


def scaled(plan: P, share: float, device: str = "cpu") -> P:
    """A plan with a share of its steps."""
    return replace(plan, steps=max(2, round(plan.steps * share)), device=device)


def _pictures(folder: Path, count: int, workers: int) -> dict[tuple[int, int], pictures.Pictures]:
    done = folder / "done"
    if not done.exists():
        pictures.paint(folder, count, workers)
        done.touch()
    return pictures.open_pictures(folder)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not (folder / "tokenizer_config.json").exists():
        train_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
