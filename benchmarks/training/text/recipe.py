"""The whole training of the text model: batches from fixed seeds, weights, and a checkpoint in transformers' layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from benchmarks.training.text.data import batch_of, save_tokenizer, tokenizer_of
from benchmarks.training.text.loss import loss_of
from benchmarks.training.text.model import CANVAS, Denoiser, config_of, new_model
from benchmarks.training.training import Plan, Training, muon
from max_zimage import embedded


@dataclass(frozen=True, kw_only=True)
class TextPlan(Plan):
    """How a part of the training goes.

    Attributes:
        likely: Share of noise that is words of captions, see `noised`.
        few: Share of canvases with little noise, see `noised`.
        vague: Share of prompts that say next to nothing, see `random_pair`.
    """

    likely: float = 0.0
    few: float = 0.0
    vague: float = 0.0


PLANS = (
    TextPlan(steps=1500, batch=32, rate=2.5e-3, warmup=100, decay=0.37),
    TextPlan(steps=3500, batch=32, rate=2e-3, warmup=50, decay=0.6, likely=0.5),
    TextPlan(steps=3000, batch=32, rate=2e-3, warmup=50, decay=0.8, likely=0.5, few=0.5, vague=0.4),
)
"""One after the other, each from the average of the weights that the one before ended with."""
BY_ADAM = ("embed", "router")
"""Names of the matrices that Muon is not meant for: inputs and outputs, and what chooses experts."""
LARGEST_BYTES = 6_000_000
GENERATION = {
    "max_new_tokens": CANVAS,
    "max_denoising_steps": 48,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "t_max": 0.6,
    "t_min": 0.3,
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
}
"""What the model is asked with where a request says nothing."""


def train(work: Path, plans: Sequence[TextPlan] = PLANS, threads: int = 1, *, is_compiled: bool = False) -> Path:
    """Train what is not trained yet, in a folder that a stopped training goes on in.

    Args:
        work: For the tokenizer, the states to go on from, the curves and, after every tenth, a checkpoint.
        plans: How long and how fast.
        threads: Of the CPU.
        is_compiled: See `Stack`.

    Returns:
        The checkpoint's folder.
    """
    torch.set_num_threads(threads)
    tokenizer = tokenizer_of(work / "tokenizer")
    config = config_of(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    denoiser, checkpoint, done = Denoiser(new_model(config), is_compiled=is_compiled), work / embedded.TEXT_NAME, 0
    for number, plan in enumerate(plans, 1):
        training = Training(work / f"part-{number}", denoiser, muon(denoiser, plan, BY_ADAM), plan)
        training.run(
            partial(_inputs, tokenizer, plan, done),
            partial(loss_of, denoiser),
            lambda diffusion, causal: f"diffusion {diffusion:.4f}  causal {causal:.4f}",
            lambda averaged, step: print(f"{export(averaged, checkpoint):,} bytes: {checkpoint}", flush=True),
        )
        denoiser.load_state_dict(training.averaged.state_dict())
        done += plan.steps
    export(denoiser, checkpoint)
    return checkpoint


def _inputs(tokenizer: PreTrainedTokenizerBase, plan: TextPlan, before: int, step: int) -> tuple[Tensor, ...]:
    return batch_of(tokenizer, plan.batch, before + step, likely=plan.likely, few=plan.few, vague=plan.vague)


def export(denoiser: Denoiser, checkpoint: Path) -> int:
    """Write the checkpoint over what was there, in bfloat16, and return its bytes.

    Raises:
        ValueError: If it is larger than a package should carry; it stays where it was written.
    """
    unfinished = checkpoint.with_name(checkpoint.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    denoiser.model.save_pretrained(unfinished)
    file = unfinished / "model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, {"format": "pt"})
    config = json.loads((unfinished / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = config["text_config"]["dtype"] = "bfloat16"
    _write(unfinished / "config.json", config)
    text = config["text_config"]
    ends = {"pad_token_id": text["pad_token_id"], "eos_token_id": text["eos_token_id"]}
    _write(unfinished / "generation_config.json", GENERATION | ends)
    save_tokenizer(unfinished)
    shutil.rmtree(checkpoint, ignore_errors=True)
    unfinished.rename(checkpoint)
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    if size > LARGEST_BYTES:
        raise ValueError(f"the checkpoint must have at most {LARGEST_BYTES:,} bytes, has {size:,}: {checkpoint}")
    return size


def _write(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
