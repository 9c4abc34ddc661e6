"""Flags that a command does not have: what they are called here, or the nearest that it has.

Reference: ComfyUI comfy/cli_args.py and its nodes' inputs, stable-diffusion-webui modules/cmd_args.py, and the example
scripts of diffusers, for names that people bring along.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType

_CFG = "--guidance (the CFG scale - 1, so that 1 is 0)"
_FILES = "--weight-path FILE (once for each file)"
_MEMORY = "--placement sequential or streamed"
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "--cfg": _CFG,
        "--cfg-scale": _CFG,
        "--denoise": "--strength (with --image)",
        "--denoising-strength": "--strength (with --image)",
        "--init-image": "--image",
        "--init-img": "--image",
        "--input": "--image",
        "--mask-image": "--mask",
        "--scheduler": "--sigma-shape",
        "--schedule": "--sigma-shape",
        "--sampler-name": "--sampler",
        "--sampling-method": "--sampler",
        "--num-inference-steps": "--steps",
        "--batch-size": "--count",
        "--batch-count": "--count",
        "--num-images-per-prompt": "--count",
        "-n": "--count",
        "--out": "--output",
        "--save": "--output",
        "-o": "--output",
        "--prompt": "the prompt itself, without a flag",
        "-p": "the prompt itself, without a flag",
        "--size": "--width and --height",
        "-W": "--width",
        "-H": "--height",
        "-s": "--seed",
        "--ckpt": "--model FOLDER, or " + _FILES,
        "--checkpoint": "--model FOLDER, or " + _FILES,
        "-m": "--model",
        "--unet": _FILES,
        "--diffusion-model": _FILES,
        "--clip": _FILES,
        "--text-encoder": _FILES,
        "--vae": _FILES,
        "--lowvram": _MEMORY,
        "--medvram": _MEMORY,
        "--novram": _MEMORY,
        "--normalvram": "--placement resident",
        "--highvram": "--placement resident",
        "--gpu-only": "--placement resident",
        "--fp32": "--dtype float32",
        "--bf16": "--dtype bfloat16",
        "--precision": "--dtype",
        "--listen": "--host",
        "--max-tokens": "--max-new-tokens",
    }
)
"""Flag of other programs -> what says the same here, if the command has it."""


def said(words: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """What is wrong with the words that a command has not taken.

    Args:
        words: They, as argparse leaves them: flags, and what stands behind them.
        parser: Of the command.
    """
    flags = [word for word in words if word.startswith("-") and len(word) > 1]
    if not flags:
        many = "; put a prompt of several words in quotes" if parser.prog.split()[-1] in ("generate", "encode") else ""
        return f"{' '.join(words)} is not understood{many}"
    return "; ".join(_said(flag.partition("=")[0], parser) for flag in dict.fromkeys(flags))


def _said(flag: str, parser: argparse.ArgumentParser) -> str:
    known = list(_known(parser))
    there = next((each for each in (flag, flag.replace("_", "-")) if each in ELSEWHERE), "")
    if there and ELSEWHERE[there].partition(" ")[0] in (*known, "the"):
        return f"{flag} is not known; here it is {ELSEWHERE[there]}"
    near = [] if there else get_close_matches(flag.replace("_", "-"), known, 1, 0.75)
    return f"{flag} is not known" + (f"; did you mean {near[0]}?" if near else "")


def _known(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The flags that its help shows."""
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from action.option_strings
