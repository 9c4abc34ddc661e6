"""The tokenizer: byte-level BPE learned from captions, with Qwen's special tokens and chat template."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.training.scenes import random_scene

ENTRIES = 408
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
_SEED = 7
_CAPTIONS = 20_000


def train_tokenizer() -> PreTrainedTokenizerBase:
    """Learn entries from captions of scenes of all kinds."""
    chance = np.random.default_rng(_SEED)
    captions = [random_scene(chance, 2 if chance.random() < 0.5 else 1, unseen=False).caption for _ in range(_CAPTIONS)]
    roles = ["user\n", "assistant\n", "system\n"] * 50
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    learned.decoder = decoders.ByteLevel()
    learned.train_from_iterator(
        [*captions, *roles],
        trainers.BpeTrainer(
            vocab_size=ENTRIES - len(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=learned,
        pad_token=special[0],
        eos_token=special[2],
        additional_special_tokens=special[1:],
        model_max_length=131072,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = TEMPLATE
    return made
