"""`max-zimage encode`: a prompt's features into a file, with nothing but the text encoder in memory."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from max_zimage.cli.console import display
from max_zimage.cli.encode_flags import TEXT_FIELDS
from max_zimage.cli.errors import checking, quiet_libraries
from max_zimage.cli.field_flags import given_fields
from max_zimage.cli.options import model_path
from max_zimage.pipeline.captions import tokens_of_request
from max_zimage.pipeline.encoder import CheckedEncoder, ZImageTextEncoder
from max_zimage.pipeline.encoding import features_of, request_of_texts
from max_zimage.progress import shown_by
from max_zimage.request.features_file import check_features_writable
from max_zimage.request.prompt_features import PromptFeatures
from max_zimage.request.request import GenerationRequest

_PATIENCE = "The first run of a model compiles its text encoder; later runs take it from disk."


def encode(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code.

    Raises:
        BadInput: If anything is wrong with what is asked for; before anything is compiled.
    """
    begin, path = time.perf_counter(), Path(arguments.output)
    with checking():
        check_features_writable(path)
    with quiet_libraries(arguments.debug):
        with checking():
            checked, request = prepare(arguments)
        with checking(), shown_by(display(quiet=arguments.quiet, note=_PATIENCE)):
            encoder = ZImageTextEncoder(checked)
        loaded = time.perf_counter()
        (features,) = features_of(encoder, request)
        features.save(path)
    if arguments.json:
        print(_json(path, features, loaded - begin, time.perf_counter() - loaded))
    elif not arguments.quiet:
        print(f"{path}: {_said(features)}")
    return 0


def prepare(arguments: argparse.Namespace) -> tuple[CheckedEncoder, GenerationRequest]:
    """Check the text encoder and the texts, tokens included.

    Raises:
        ValueError: If anything is wrong with either.
    """
    checked = ZImageTextEncoder.prepare(
        model_path(arguments.model),
        device=arguments.device if arguments.encoder_device is None else arguments.encoder_device,
        dtype=arguments.dtype or "auto",
        weight_path=arguments.weight_path,
        templates_dir=arguments.templates_dir,
        quantize=arguments.quantize,
        attention_backend=arguments.attention_backend,
        config=arguments.configuration,
    )
    given = given_fields(arguments)
    settings = {name: given[name] for name in TEXT_FIELDS if name in given}
    request = request_of_texts(checked, arguments.prompt, given.get("negative_prompt"), **settings)
    tokens_of_request(request, checked.tokenizer, checked.limits)
    return checked, request


def _said(features: PromptFeatures) -> str:
    rows, width = features.positive.shape
    negative = "" if features.negative is None else f", {len(features.negative)} of the negative prompt"
    return f"{rows} rows of {width} numbers{negative}"


def _json(path: Path, features: PromptFeatures, load: float, seconds: float) -> str:
    return json.dumps(
        {
            "file": str(path.absolute()),
            "digest": features.digest,
            "tokens": features.tokens,
            "negative_tokens": None if features.negative is None else len(features.negative),
            "width": int(features.positive.shape[1]),
            "seconds": {"load": round(load, 3), "encode": round(seconds, 3)},
        }
    )
