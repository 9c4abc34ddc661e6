"""Prompts and captions as tokens: the tokenizer of the embedded image model under a chat template of its own."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.training.text.loss import noised
from benchmarks.training.text.model import CANVAS
from benchmarks.training.text.prompts import random_pair
from benchmarks.training.text.wishes import caption_of
from benchmarks.training.training import chance_of
from max_zimage import embedded

WIDTHS = (8, 12, 20)
"""What prompts are padded to in training, each to the first that it fits in; longer ones are drawn anew."""
POOL = 16
"""Steps whose prompts are drawn together and sorted by their length, so that little is padding."""
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|> ' + message['content'] | trim + '<|im_end|>' }}{%- endfor %}"
)
"""A blank before the first word makes it one token, as every other word is."""
_SEED = 43


def save_tokenizer(folder: Path) -> None:
    """The embedded image model's entries, so that a caption is its own prompt there, and the template."""
    source = embedded.PATH / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, made there if it is not."""
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """A prompt's tokens, with the template's."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def left_padded(rows: list[list[int]], pad: int, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows as one tensor int64 [rows, width], by default of the longest, and how long each is, int64 [rows]."""
    width = width or max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor(list(map(len, rows)))


def batch_of(
    tokenizer: PreTrainedTokenizerBase,
    batch: int,
    step: int,
    *,
    likely: float = 0.0,
    few: float = 0.0,
    vague: float = 0.0,
) -> tuple[Tensor, ...]:
    """What a step of the number given learns from, in the order of `loss.loss_of`; for shares see `recipe.TextPlan`."""
    pairs = _pool(tokenizer, batch, step // POOL, vague)[step % POOL]
    prompts, captions = zip(*pairs, strict=True)
    width = next(width for width in WIDTHS if width >= max(map(len, prompts)))
    ids, lengths = left_padded(list(prompts), tokenizer.pad_token_id, width)
    clean = torch.tensor(captions)
    _, random = chance_of(_SEED, step)
    return ids, lengths, clean, noised(clean, len(tokenizer), random, likely=likely, few=few)


@lru_cache(maxsize=1)
def _pool(
    tokenizer: PreTrainedTokenizerBase, batch: int, number: int, vague: float
) -> list[list[tuple[list[int], list[int]]]]:
    """Prompts and captions of `POOL` steps: alike in length within a step, the steps in random order."""
    chance, _ = chance_of(_SEED, number)
    pairs = sorted((_pair(tokenizer, chance, vague) for _ in range(POOL * batch)), key=lambda pair: len(pair[0]))
    return [pairs[place * batch : (place + 1) * batch] for place in chance.permutation(POOL)]


def _pair(tokenizer: PreTrainedTokenizerBase, chance: np.random.Generator, vague: float) -> tuple[list[int], list[int]]:
    while True:
        prompt, wish = random_pair(chance, vague)
        ids = prompt_ids(tokenizer, prompt)
        if len(ids) <= WIDTHS[-1]:
            break
    caption = list(tokenizer(caption_of(wish), add_special_tokens=False)["input_ids"])
    return ids, caption + [tokenizer.eos_token_id] * (CANVAS - len(caption))
