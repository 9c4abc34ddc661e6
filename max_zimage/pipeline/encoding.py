"""Prompts to features that can be kept, drawn from later, or drawn from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from max.driver import Device

from max_zimage.components import ZImageTextEncoderModel
from max_zimage.device.devices import device_kind
from max_zimage.pipeline.captions import encoded_features, tokens_of_request
from max_zimage.pipeline.features import FeatureChange
from max_zimage.request.feature_settings import SETTINGS
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.prompt_features import MadeBy, PromptFeatures
from max_zimage.request.request import GenerationRequest
from max_zimage.text.tokenizer import PromptTokenizer
from max_zimage.version import __version__


class Sources(Protocol):
    """What a checkpoint can do at most, and what it does where nothing is asked for."""

    @property
    def limits(self) -> Limits:
        """At most."""

    @property
    def defaults(self) -> RequestDefaults:
        """Where nothing is asked for."""


class Encodes(Protocol):
    """What encodes prompts: a pipeline, or a text encoder alone."""

    tokenizer: PromptTokenizer
    text_encoder: ZImageTextEncoderModel
    device: Device

    @property
    def sources(self) -> Sources:
        """The checkpoint."""


def request_of_texts(
    sources: Sources, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None, **settings: Any
) -> GenerationRequest:
    """Validate what is to be encoded; arguments and errors are those of `encode`."""
    known = (*SETTINGS, "template")
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise TypeError(f"a prompt is not encoded with {', '.join(unknown)}; there are {', '.join(known)}")
    scale = 0.0 if negative_prompt is None else 1.0  # where it is 0, there are no negative prompts
    defaults = replace(sources.defaults, step_cache=None)
    given = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance_scale": scale, "seed": 0, **settings}
    return GenerationRequest.create(limits=sources.limits, defaults=defaults, **given)


def encode(
    self: Encodes,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    **settings: Any,
) -> Any:
    """Encode prompts: what `features` of a call takes, and `PromptFeatures.save` keeps.

    Args:
        self: The pipeline, or a text encoder alone.
        prompt: One, or several.
        negative_prompt: One for all, or as many; "" for guidance without one. None encodes none.
        **settings: `system_prompt`, `thinking_content`, `assistant_content`, `template`, `hidden_layer`,
            `long_prompt_mode` and `max_sequence_length`; see `max_zimage.request.text_fields`.

    Returns:
        `PromptFeatures` of one prompt, or a list of them for a list.

    Raises:
        RequestError: If an argument is out of range, or a text has too many tokens.
        TypeError: If there is no such setting.
    """
    request = request_of_texts(self.sources, prompt, negative_prompt, **settings)
    found = features_of(self, request)
    return found[0] if isinstance(prompt, str) else found


def features_of(encoder: Encodes, request: GenerationRequest) -> list[PromptFeatures]:
    """The features of each prompt of a request, and of its negative prompts where it has such.

    Args:
        encoder: Encodes them.
        request: From `request_of_texts`.

    Raises:
        RequestError: If a text has too many tokens.
    """
    limits = encoder.sources.limits
    texts = tokens_of_request(request, encoder.tokenizer, limits)
    change = FeatureChange(rows=limits.max_tokens, mode=request.long_prompt_mode)
    rows = [change(each) for each in encoded_features(encoder.text_encoder, texts, request.hidden_layer)]
    positives, negatives = rows[: request.num_prompts], rows[request.num_prompts :]
    return [
        PromptFeatures(
            positive=positive.copy(),
            negative=negatives[index].copy() if negatives else None,
            made_by=_made_by(encoder, request, index),
        )
        for index, positive in enumerate(positives)
    ]


def _made_by(encoder: Encodes, request: GenerationRequest, index: int) -> MadeBy:
    return MadeBy(
        prompt=request.prompts[index],
        negative_prompt=request.negative_prompts[index] if request.negative_prompts else None,
        **{name: getattr(request, name) for name in SETTINGS},
        template=encoder.tokenizer.template_digest,
        tokenizer_digest=encoder.tokenizer.digest,
        encoder_digest=encoder.text_encoder.identity,
        dtype=encoder.text_encoder.dtype_name,
        device=device_kind(encoder.device),
        version=__version__,
    )
