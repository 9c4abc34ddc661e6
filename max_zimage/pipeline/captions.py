"""What a request's captions are: token ids of its texts, or features that it brings, each distinct one once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from max.driver import CPU, Buffer
from max.dtype import DType

from max_zimage.components import ZImageTextEncoderModel
from max_zimage.pipeline.batch import Captions, Compression, FloatArray, IdArray
from max_zimage.request.checks import check_tokens
from max_zimage.request.limits import Limits
from max_zimage.request.request import GenerationRequest
from max_zimage.text.long_prompts import compressed
from max_zimage.text.tokenizer import Around, PromptTokenizer


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
    negatives = request.negative_prompt_embeds if request.use_guidance else None
    texts = tokens_of_request(request, tokenizer, limits)
    given = (*(request.prompt_embeds or ()), *(negatives or ()))
    few = Compression(rows=limits.max_tokens, modes=(request.long_prompt_mode,) * len(texts))
    features = _complete(given, texts, few, text_encoder, prompts_first=bool(request.prompts)) if given else ()
    copies = [request.num_images_per_prompt] * request.num_prompts
    return deduplicate_captions([] if features else texts, features, copies=copies, compression=few)


def tokens_of_request(request: GenerationRequest, tokenizer: PromptTokenizer, limits: Limits) -> list[IdArray]:
    """Tokenize the texts of a request, int64 [tokens] each: its prompts, then its negative prompts.

    Raises:
        RequestError: If a text has too many tokens.
    """
    around = Around(
        system=request.system_prompt, thinking=request.thinking_content, assistant=request.assistant_content
    )
    texts = [tokenizer.encode(text, around) for text in request.prompts]
    texts += [tokenizer.encode(text) for text in request.negative_prompts]
    for index, ids in enumerate(texts):
        is_negative = index >= len(request.prompts)
        which, field = ("the negative prompt", "negative_prompt") if is_negative else ("the prompt", "prompt")
        check_tokens(len(ids), request.long_prompt_mode, request.max_sequence_length, limits, which, field)
    return texts


def deduplicate_captions(
    texts: Sequence[IdArray],
    features: Sequence[FloatArray],
    *,
    copies: Sequence[int],
    compression: Compression | None = None,
) -> Captions:
    """Find the distinct captions, and which one each item of the transformer's batch shows.

    Args:
        texts: Token ids of the positive captions, then of the negative ones.
        features: The same as features, in place of `texts`.
        copies: Pictures of each prompt: as many as there are positive captions. The rest of the captions are as many
            negative ones, or none.
        compression: How the features of each of `texts` become fewer, where they are too many; None where none are.
    """
    modes = compression.modes if compression and texts else ("",) * len(texts or features)
    content = [ids.tobytes() for ids in texts] or [item.tobytes() for item in features]
    keys = list(zip(content, modes, strict=True))
    distinct = {key: index for index, key in reversed(list(enumerate(keys)))}
    kept = sorted(distinct.values())
    places = {key: kept.index(index) for key, index in distinct.items()}
    positive, negative = keys[: len(copies)], keys[len(copies) :]
    return Captions(
        tokens=tuple(texts[index] for index in kept) if texts else (),
        features=() if texts else tuple(features[index] for index in kept),
        compression=replace(compression, modes=tuple(modes[index] for index in kept)) if compression else None,
        rows=tuple(
            places[key]
            for branch in (positive, negative)
            if branch
            for key, pictures in zip(branch, copies, strict=True)
            for _ in range(pictures)
        ),
    )


def _complete(
    given: Sequence[FloatArray],
    texts: Sequence[IdArray],
    compression: Compression,
    text_encoder: ZImageTextEncoderModel,
    prompts_first: bool,
) -> tuple[FloatArray, ...]:
    """Features of both branches, where one is given as features and the other as text."""
    encoded: tuple[FloatArray, ...] = ()
    if texts:
        encoded = encoded_features(text_encoder, texts, compression)
    return (*encoded, *given) if prompts_first else (*given, *encoded)


def encoded_features(
    text_encoder: ZImageTextEncoderModel, texts: Sequence[IdArray], compression: Compression
) -> tuple[FloatArray, ...]:
    """Features of texts on the host, float32 [tokens, caption_dim] each, made fewer where they are too many."""
    values = float_features(text_encoder, text_encoder(texts))
    return tuple(
        compressed(mode, row[: len(ids)], compression.rows)
        for row, ids, mode in zip(values, texts, compression.modes, strict=True)
    )


def float_features(text_encoder: ZImageTextEncoderModel, features: Buffer) -> npt.NDArray[np.float32]:
    """Features on the host in float32, whatever the model's dtype."""
    host = features.to(CPU())
    if text_encoder.dtype_name == "float32":
        return host.to_numpy()
    bits = host.view(DType.uint16, features.shape).to_numpy()
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
