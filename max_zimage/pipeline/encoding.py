"""Texts of a call to what its steps take, or to features that are kept and drawn from later, or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from max.driver import Device

from max_zimage.components import ZImageTextEncoderModel, ZImageTransformerModel, ZImageVaeModel
from max_zimage.device.devices import device_kind
from max_zimage.pipeline.batch import IdArray, ZImageModelInputs
from max_zimage.pipeline.captions import captions_of_request, encoded_features, tokens_of_request
from max_zimage.pipeline.features import FeatureChange
from max_zimage.pipeline.load_components import PathName
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.prepare import inputs_of_request
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
    configured = {name: value for name, value in sources.defaults.configured.items() if name in known}
    defaults = replace(sources.defaults, step_cache=None, configured=configured)
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


def inputs_of_texts(
    request: GenerationRequest,
    sources: CheckpointManifest,
    tokenizer: PromptTokenizer,
    text_encoder: ZImageTextEncoderModel,
    transformer: ZImageTransformerModel,
    vae: ZImageVaeModel,
) -> ZImageModelInputs:
    """Its captions, then all that the steps take; errors are those of `captions_of_request` and `inputs_of_request`."""
    captions = captions_of_request(request, tokenizer, text_encoder, sources.limits)
    return inputs_of_request(request, captions, sources.specs.schedule, transformer, vae)


def from_pretrained_generator_only(cls: Any, /, model: PathName | None = None, **options: Any) -> Any:
    """Load a checkpoint without its text encoder and its tokenizer, whose files need not be there.

    What comes of it draws from `features` alone, and negative prompts must be among them.

    Args:
        cls: The pipeline's class.
        model: As in `from_pretrained`, whose other arguments and errors hold, too.
        **options: Those.
    """
    return cls.from_prepared(cls.prepare(model, **options, generator_only=True))


def generate_from_embeddings(self: Any, features: PromptFeatures | Sequence[PromptFeatures], **more: Any) -> Any:
    """Draw from features: the call, with `features` before its other arguments."""
    return self(features=features, **more)


def features_of(encoder: Encodes, request: GenerationRequest) -> list[PromptFeatures]:
    """The features of each prompt of a request, and of its negative prompts where it has such.

    Args:
        encoder: Encodes them.
        request: From `request_of_texts`.

    Raises:
        RequestError: If a text has too many tokens.
    """
    limits, tokenizer = encoder.sources.limits, encoder.tokenizer
    texts = tokens_of_request(request, tokenizer, limits)
    digests = tokenizer.template_digest, tokenizer.digest
    return features_of_ids(encoder.text_encoder, request, texts, limits.max_tokens, digests)


def features_of_ids(
    text_encoder: ZImageTextEncoderModel,
    request: GenerationRequest,
    texts: Sequence[IdArray],
    most: int,
    digests: tuple[str, str],
) -> list[PromptFeatures]:
    """The same of texts that are token ids already.

    Args:
        text_encoder: Encodes them.
        request: From `request_of_texts`.
        texts: int64 [tokens] each: of its prompts, then of its negative prompts.
        most: Rows of features that the transformer takes at most.
        digests: Of the chat template and of the tokenizer.
    """
    change = FeatureChange(rows=most, mode=request.long_prompt_mode)
    rows = [change(each) for each in encoded_features(text_encoder, texts, request.hidden_layer)]
    positives, negatives = rows[: request.num_prompts], rows[request.num_prompts :]
    return [
        PromptFeatures(
            positive=positive.copy(),
            negative=negatives[index].copy() if negatives else None,
            made_by=_made_by(text_encoder, request, index, *digests),
        )
        for index, positive in enumerate(positives)
    ]


def _made_by(
    text_encoder: ZImageTextEncoderModel, request: GenerationRequest, index: int, template: str, tokenizer: str
) -> MadeBy:
    return MadeBy(
        prompt=request.prompts[index],
        negative_prompt=request.negative_prompts[index] if request.negative_prompts else None,
        **{name: getattr(request, name) for name in SETTINGS},
        template=template,
        tokenizer_digest=tokenizer,
        encoder_digest=text_encoder.identity,
        dtype=text_encoder.dtype_name,
        device=device_kind(text_encoder.device),
        version=__version__,
    )
