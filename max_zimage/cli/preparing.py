"""What `max-zimage generate` draws, and with what: checked, before anything is loaded."""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from max_zimage.cli.errors import warn
from max_zimage.cli.options import GenerateOptions
from max_zimage.cli.placement_flags import placed, placement_options
from max_zimage.device.devices import device_kind
from max_zimage.request.legs import legs_of

if TYPE_CHECKING:
    from max_zimage.pipeline.loading import CheckedModel
    from max_zimage.request.request import GenerationRequest


def prepare(wanted: GenerateOptions, arguments: argparse.Namespace) -> tuple[CheckedModel, GenerationRequest]:
    """Check the checkpoint and the request, tokens included.

    Raises:
        ValueError: If anything is wrong with either.
    """
    from max_zimage.pipeline.captions import another_encoder, tokens_of_request
    from max_zimage.pipeline.zimage import ZImagePipeline

    options = {
        "device": arguments.device,
        "dtype": wanted.dtype,
        "weight_path": wanted.weight_paths,
        "templates_dir": arguments.templates_dir,
        "quantize": wanted.quantize,
        "attention_backend": wanted.attention,
        "embedding_cache_bytes": arguments.embedding_cache,
        "config": arguments.configuration,
        **placement_options(arguments),
    }
    from_features = "features" in wanted.values
    prepared = ZImagePipeline.prepare(wanted.model_path, **options, generator_only=from_features)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        request = wanted.request(prepared.sources.limits, prepared.sources.defaults)
        request = replace(request, output_type="latent") if arguments.latents_out else request
    # Guidance may want a negative prompt, of which there are no features.
    if from_features and request.read_negatives and (prepared.directory / "text_encoder").is_dir():
        prepared = ZImagePipeline.prepare(wanted.model_path, **options)
        if doubt := another_encoder(request, prepared.encoder_digest):
            warn(doubt)
    for warning in caught:
        warn(cast(Warning, warning.message))
    legs_of(request, prepared.sources.specs.schedule)
    device = device_kind(prepared.devices[0])
    if wanted.drawn_on not in (None, device) and not arguments.quiet:
        warn(f"{arguments.source} was drawn on a {wanted.drawn_on}; on a {device} some levels may differ")
    tokens_of_request(request, prepared.tokenizer, prepared.sources.limits)
    prepared = placed(prepared, request, arguments)
    for fact in prepared.facts_of(request):
        if not arguments.quiet:
            print(f"max-zimage: {fact}", file=sys.stderr)
    return prepared, request
