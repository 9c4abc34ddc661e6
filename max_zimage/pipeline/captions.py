"""What a request's captions are: token ids of its texts, or features that it brings, each distinct one once."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from max.driver import CPU, Buffer
from max.dtype import DType

from max_zimage.components import NoTextEncoder, ZImageTextEncoderModel
from max_zimage.errors import Problem, RequestError, RequestWarning
from max_zimage.pipeline.batch import Captions, FloatArray, IdArray
from max_zimage.pipeline.features import FeatureChange
from max_zimage.request.checks import check_tokens
from max_zimage.request.hidden_layer import HiddenLayer
from max_zimage.request.limits import Limits
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.noise import image_seed
from max_zimage.text.tokenizer import Around, NoTokenizer, PromptTokenizer

A = TypeVar("A")


def captions_of_request(
    request: GenerationRequest, tokenizer: PromptTokenizer, text_encoder: ZImageTextEncoderModel, limits: Limits
) -> Captions:
    """Tokenize what a request shows, or take its features.

    Args:
        request: The request.
        tokenizer: Text to ids.
        text_encoder: Encodes the text of a request that gives features for one branch and text for the other.
        limits: What the checkpoint can do at most.

    Raises:
        RequestError: If a text has too many tokens.
    """
    texts = tokens_of_request(request, tokenizer, limits)
    positives, negatives = request.given_positives, request.given_negatives
    loaded = not isinstance(text_encoder, NoTextEncoder)
    if request.features and loaded and (doubt := another_encoder(request, text_encoder.identity)):
        warnings.warn(doubt, stacklevel=5)
    pictures = Pictures.of(request, limits.max_tokens, request.seed, request.num_images)
    if not positives and not negatives:
        return replace(pictures.captions(texts, (), request.num_prompts), hidden_layer=request.hidden_layer)
    encoded = encoded_features(text_encoder, texts, request.hidden_layer) if texts else ()
    # What is encoded are the prompts, or the negative prompts: where both are texts nothing is given.
    return pictures.captions((), (*positives, *encoded, *negatives), request.num_prompts)


def tokens_of_request(request: GenerationRequest, tokenizer: PromptTokenizer, limits: Limits) -> list[IdArray]:
    """Tokenize what the text encoder reads of a request, int64 [tokens] each: prompts, then negative prompts.

    Raises:
        RequestError: If a text has too many tokens, or nothing can be encoded here.
    """
    around = Around(
        system=request.system_prompt, thinking=request.thinking_content, assistant=request.assistant_content
    )
    prompts = request.read_prompts
    if isinstance(tokenizer, NoTokenizer) and (prompts or request.read_negatives):
        raise _no_text_encoder(request)
    texts = [tokenizer.encode(text, around) for text in prompts]
    texts += [tokenizer.encode(text) for text in request.read_negatives]
    for index, ids in enumerate(texts):
        is_negative = index >= len(prompts)
        field, place = ("negative_prompt", index - len(prompts)) if is_negative else ("prompt", index)
        words = field.replace("_", " ")
        which = f"{words} {place}" if request.num_prompts > 1 else f"the {words}"
        check_tokens(len(ids), request.long_prompt_mode, request.max_sequence_length, limits, which, field)
    return texts


def another_encoder(request: GenerationRequest, identity: str) -> RequestWarning | None:
    """That features come from weights which are not those of the checkpoint: the picture may be no worse for it.

    Args:
        request: May bring features.
        identity: Digest of the text encoder's weights.
    """
    made = [each.made_by for each in request.features or () if each.made_by is not None]
    if all(each.encoder_digest == identity for each in made):
        return None
    message = "{field} were made by another text encoder than this checkpoint's; encode again if that is not meant"
    return RequestWarning(Problem.of("features", message))


def _no_text_encoder(request: GenerationRequest) -> RequestError:
    """Why texts cannot be encoded, and what to give in their place."""
    if request.read_prompts:
        message = "{field}: the text encoder is not loaded, and this pipeline draws from {name[features]} alone; give "
        return RequestError.of("prompt", message + "them, or load it with its text encoder")
    message = "{field}: the text encoder is not loaded, and {name[features]} have none of the {field}, which "
    scale = "guidance_scale" if request.use_guidance else "nag_scale"
    rest = 'needs; encode with it ("" is one), set that to 0, or load the text encoder'
    return RequestError.of("negative_prompt", message + "{name[" + scale + "]} " + rest)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a request, and what is done to the features of each.

    Attributes:
        copies: Of each prompt.
        changes: One for each picture: the same for all that show the same caption.
        negative: What is done to the negative captions.
    """

    copies: int
    changes: tuple[FeatureChange, ...]
    negative: FeatureChange

    @classmethod
    def of(cls, asked: GenerationRequest, rows: int, seed: int | None, pictures: int) -> Pictures:
        """Those of a request.

        Args:
            asked: The request.
            rows: Rows of features that the transformer takes at most.
            seed: Of the first picture; None for 0.
            pictures: How many there are.
        """
        plain = FeatureChange(rows=rows, mode=asked.long_prompt_mode)
        if not asked.seed_variance:
            return cls(copies=asked.num_images_per_prompt, changes=(plain,) * pictures, negative=plain)
        moved = replace(plain, strength=asked.seed_variance, share=asked.seed_variance_share)
        changes = tuple(replace(moved, seed=image_seed(seed or 0, picture)) for picture in range(pictures))
        return cls(copies=asked.num_images_per_prompt, changes=changes, negative=plain)

    def shown(self, captions: Sequence[A], prompts: int) -> tuple[list[tuple[A, FeatureChange]], ...]:
        """The positive and the negative caption of each picture, each with what is done to it.

        Args:
            captions: The positive ones, then as many negative ones or none.
            prompts: How many are positive.
        """
        positive, negative = captions[:prompts], captions[prompts:]
        first = [(positive[at // self.copies], change) for at, change in enumerate(self.changes)]
        return first, [(negative[at // self.copies], self.negative) for at in range(len(first))] if negative else []

    def captions(self, texts: Sequence[IdArray], features: Sequence[FloatArray], prompts: int) -> Captions:
        """The distinct captions of a request, given as texts or as features."""
        if texts:
            return deduplicate_captions(*self.shown(texts, prompts))
        return deduplicate_features(*map(changed, self.shown(features, prompts)))


def changed(captions: Sequence[tuple[FloatArray, FeatureChange]]) -> list[FloatArray]:
    """Features of captions with what is done to them."""
    return [change(item) if change.is_needed(len(item)) else item for item, change in captions]


def deduplicate_captions(
    positive: Sequence[tuple[IdArray, FeatureChange]], negative: Sequence[tuple[IdArray, FeatureChange]]
) -> Captions:
    """Find the distinct captions, and which one each branch row shows.

    Args:
        positive: Token ids of each picture's caption, and what is done to its features.
        negative: The same of its negative caption; empty for none.
    """
    shown = [*positive, *negative]
    kept, rows = _distinct([(ids.tobytes(), change) for ids, change in shown])
    return Captions(
        tokens=tuple(shown[index][0] for index in kept),
        features=(),
        rows=rows,
        changes=tuple(shown[index][1] for index in kept),
    )


def deduplicate_features(positive: Sequence[FloatArray], negative: Sequence[FloatArray]) -> Captions:
    """The same of captions that are given as features."""
    shown = [*positive, *negative]
    kept, rows = _distinct([item.tobytes() for item in shown])
    return Captions(tokens=(), features=tuple(shown[index] for index in kept), rows=rows)


def _distinct(keys: Sequence[Hashable]) -> tuple[list[int], tuple[int, ...]]:
    """Where each distinct key first is, and the place of every key among those."""
    places: dict[Hashable, int] = {}
    kept: list[int] = []
    for index, key in enumerate(keys):
        if key not in places:
            places[key] = len(kept)
            kept.append(index)
    return kept, tuple(places[key] for key in keys)


def encoded_features(
    text_encoder: ZImageTextEncoderModel, texts: Sequence[IdArray], hidden_layer: HiddenLayer
) -> tuple[FloatArray, ...]:
    """Features of texts on the host, float32 [tokens, caption_dim] each; those that are kept are not made again."""
    kept = text_encoder.kept_features
    if kept is None:
        return _encoded(text_encoder, texts, hidden_layer)
    keys = [(text_encoder.identity, hidden_layer, ids.tobytes()) for ids in texts]
    found = {key: kept.get(key) for key in dict.fromkeys(keys)}
    missing = [(key, ids) for key, ids in dict(zip(keys, texts, strict=True)).items() if found[key] is None]
    if missing:
        made = _encoded(text_encoder, [ids for _, ids in missing], hidden_layer)
        for (key, _), features in zip(missing, made, strict=True):
            found[key] = features
            kept.put(key, features)
    return tuple(each for key in keys if (each := found[key]) is not None)


def _encoded(
    text_encoder: ZImageTextEncoderModel, texts: Sequence[IdArray], hidden_layer: HiddenLayer
) -> tuple[FloatArray, ...]:
    values = float_features(text_encoder, text_encoder(texts, hidden_layer))
    return tuple(row[: len(ids)] for row, ids in zip(values, texts, strict=True))


def changed_features(text_encoder: ZImageTextEncoderModel, captions: Captions) -> tuple[FloatArray, ...]:
    """Features of texts as the transformer gets them; a text that is there several times is encoded once."""
    texts, changes = captions.tokens, captions.changes or (None,) * len(captions.tokens)
    kept, places = _distinct([ids.tobytes() for ids in texts])
    encoded = encoded_features(text_encoder, [texts[index] for index in kept], captions.hidden_layer)
    return tuple(
        change(encoded[place]) if change else encoded[place] for place, change in zip(places, changes, strict=True)
    )


def float_features(text_encoder: ZImageTextEncoderModel, features: Buffer) -> npt.NDArray[np.float32]:
    """Features on the host in float32, whatever the model's dtype."""
    host = features.to(CPU())
    if text_encoder.dtype_name == "float32":
        return host.to_numpy()
    bits = host.view(DType.uint16, features.shape).to_numpy()
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
