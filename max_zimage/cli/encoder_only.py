"""`max-zimage generate --encoder-only`: what llm-dit's users write for `max-zimage encode`."""

from __future__ import annotations

import argparse

from max_zimage.cli.common import DEFAULT_PROMPT
from max_zimage.cli.encode_flags import TEXT_FIELDS
from max_zimage.cli.errors import BadInput
from max_zimage.cli.field_flags import given_fields
from max_zimage.cli.other_flags import keyed
from max_zimage.request.fields import FLAGS

_DRAWING = (
    "output", "source", "embeddings", "latents_in", "latents_out", "image", "show_prompt", "enhance_template"
)  # fmt: skip

_OTHERS = ("placement", "max_memory", "dit_device", "vae_device", "cpu_offload", "devices", "split")
"""Flags about where several components run."""


def as_encode(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments as `encode` takes them.

    Raises:
        BadInput: If there is no file to save to, or one of a picture.
    """
    if arguments.save_embeddings is None:
        raise BadInput("--encoder-only saves the features of a prompt; name their file with --save-embeddings FILE")
    given = [name for name in _DRAWING if getattr(arguments, name) is not None]
    drawing = ["--from" if name == "source" else f"--{name.replace('_', '-')}" for name in given]
    drawing += keyed(arguments)
    if drawing:
        raise BadInput(f"{drawing[0]} is about a picture, and --encoder-only draws none; leave one of them out")
    others = [f"--{name.replace('_', '-')}" for name in _OTHERS if getattr(arguments, name)]
    if others:
        raise BadInput(f"{', '.join(others)}: --encoder-only loads the text encoder alone; leave one of the two out")
    texts = {*TEXT_FIELDS, "prompt", "negative_prompt"}
    idle = [FLAGS.names[name] for name in given_fields(arguments) if name not in texts]
    if idle:
        raise BadInput(f"{', '.join(idle)}: of a picture, and --encoder-only draws none; leave out one or the other")
    prompt = DEFAULT_PROMPT if arguments.prompt is None else arguments.prompt
    return argparse.Namespace(**vars(arguments) | {"output": arguments.save_embeddings, "prompt": prompt})
