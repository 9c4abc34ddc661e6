"""What `--help` shows below the flags of each command: lines to copy. A test has the parser read every one of them."""

from __future__ import annotations

import argparse
from typing import Any

_TURBO = "Tongyi-MAI/Z-Image-Turbo"

EXAMPLES = {
    "generate": (
        'max-zimage generate "a red star on a blue background" --seed 3',
        f'max-zimage generate "a lighthouse in a storm" --model {_TURBO} --steps 8 --guidance 0',
        'max-zimage generate "a green circle" --count 4 --output circles.png',
        'max-zimage generate "a boat" --image photo.png --strength 0.5 --output boat.webp',
        "max-zimage generate --from picture.png --seed 7",
        'max-zimage generate "red star" --enhance --show-prompt',
        'max-zimage generate "a harbour" --enhance http://localhost:8080/v1 --model Tongyi-MAI/Z-Image-Turbo',
    ),
    "batch": (
        "max-zimage batch prompts.csv --output pictures --steps 8",
        f"max-zimage batch requests.jsonl --output s3://bucket/job --format webdataset --model {_TURBO}",
        "max-zimage batch prompts.parquet --output /shared/job --ray auto --max-errors 100",
    ),
    "encode": (
        'max-zimage encode "a red star" --output star.safetensors',
        f'max-zimage encode "a boat" --negative "blurry" --model {_TURBO} --output boat.safetensors',
    ),
    "write": (
        'max-zimage write "red star"',
        'max-zimage write "blue circle green ring" --seed 7 --json',
        'max-zimage write "Why is the sky blue?" --model diffusiongemma-26B-A4B-it --device gpu --max-new-tokens 512',
    ),
    "info": (
        f"max-zimage info --model {_TURBO} --height 1024 --width 1024",
        "max-zimage info --check-weights",
        "max-zimage info --templates",
    ),
    "compile": (
        "max-zimage compile --target cuda:sm_90a --keep",
        "max-zimage compile --target cuda:sm_100a --graphs denoise --list-kernels",
    ),
    "convert": (
        "max-zimage convert FOLDER --output model.gguf --layout gguf --type q8_0 --component transformer",
        "max-zimage convert FOLDER --output fused --layout diffusers --lora style.safetensors:0.8",
    ),
    "profile": (
        'max-zimage profile --prompt "a red star" --steps 8 --guidance 2',
        "max-zimage profile --component vae --height 1024 --width 1024",
    ),
    "doctor": ("max-zimage doctor", f"max-zimage doctor {_TURBO} --device gpu", "max-zimage doctor --json"),
    "verify": (
        "max-zimage verify",
        f"max-zimage verify {_TURBO} --device gpu --dtype bfloat16",
        f"max-zimage verify {_TURBO} --weight-path transformer-q8_0.gguf",
    ),
    "serve": (
        "max-zimage serve",
        f"max-zimage serve {_TURBO} --port 8080 --api-key-file key.txt",
        "max-zimage serve --host 0.0.0.0 --allow-host pictures.example.com --restart",
        "max-zimage serve --enhancer embedded",
        "max-zimage serve --ray local --replicas 2 --state-store file:///shared/state",
    ),
    "config": (
        "max-zimage config show",
        "max-zimage config show --profile low generate --steps 4",
        "max-zimage config example > ~/.config/max-zimage/config.toml",
    ),
    "completion": (
        "max-zimage completion bash > ~/.local/share/bash-completion/completions/max-zimage",
        'max-zimage completion zsh > "${fpath[1]}/_max-zimage"',
        "max-zimage completion fish > ~/.config/fish/completions/max-zimage.fish",
        "max-zimage completion tcsh > ~/.max-zimage.tcsh   (and `source` it in ~/.tcshrc)",
    ),
}
"""Command -> its examples."""

_HEAD = "examples:"


class ExampleFormatter(argparse.HelpFormatter):
    """Leaves the lines of examples as they are, and wraps all other text."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_HEAD):
            return text
        return super()._fill_text(text, width, indent)


def add_examples(commands: argparse._SubParsersAction[Any]) -> None:
    """Give every command its examples.

    Args:
        commands: All of them.

    Raises:
        KeyError: If a command has none.
    """
    for name, parser in commands.choices.items():
        # Percent signs would be taken for what argparse fills in.
        lines = [line.replace("%", "%%") for line in EXAMPLES[name]]
        parser.epilog = "\n  ".join([_HEAD, *lines])
        parser.formatter_class = ExampleFormatter
