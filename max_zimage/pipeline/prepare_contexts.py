"""Requests of a server, as the contexts that `max serve` sends, to device inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from max.driver import Buffer
from max.pipelines.context import PixelContext

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.components import ZImageTextEncoderModel, ZImageTransformerModel, ZImageVaeModel
from max_zimage.pipeline.batch import Captions, FloatArray, ZImageModelInputs
from max_zimage.pipeline.captions import (
    Pictures,
    changed,
    deduplicate_captions,
    deduplicate_features,
    encoded_features,
)
from max_zimage.pipeline.context import ZImageContext, asked_of, request_of, schedule_of, step_cache_of
from max_zimage.pipeline.features import FeatureChange
from max_zimage.pipeline.inpainting import Masked, Paste
from max_zimage.pipeline.mixed_adapters import MixedAdapters, mixed_of
from max_zimage.pipeline.planning import planned, planned_later, seeds_of
from max_zimage.pipeline.prepare import drawn_noise, laid_out
from max_zimage.pipeline.start_from_image import begin, pastes_of, starting_latents
from max_zimage.request.legs import Leg, legs_of
from max_zimage.request.wire import without_loras
from max_zimage.sampling.positions import max_caption_tokens
from max_zimage.sampling.schedule import ScheduleSpec


def sharing_key(context: PixelContext) -> tuple[object, ...]:
    """What requests of a server must have in common to share steps: sizes, schedule, guidance, step cache.

    The table of fields says it where a context carries its request; of others there is no more than this.
    """
    if isinstance(context, ZImageContext) and context.sharing:
        return (context.sharing,)
    return (
        context.height,
        context.width,
        np.asarray(context.sigmas, np.float32).tobytes(),
        float(context.guidance_scale),
        float(context.cfg_truncation),
        float(context.cfg_normalization),
        step_cache_of(context),
    )


def _share(one: PixelContext, other: PixelContext) -> bool:
    return sharing_key(one) == sharing_key(other)


def fit_together(one: PixelContext, other: PixelContext) -> bool:
    """Whether two requests could share steps, each under its own adapters where they differ in these."""
    if _share(one, other):
        return True
    texts = [each.sharing if isinstance(each, ZImageContext) else "" for each in (one, other)]
    return all(texts) and without_loras(texts[0]) == without_loras(texts[1])


def inputs_of_contexts(
    contexts: Sequence[PixelContext],
    schedule_spec: ScheduleSpec,
    transformer: ZImageTransformerModel,
    vae: ZImageVaeModel,
    text_encoder: ZImageTextEncoderModel,
    mixed: MixedAdapters | None = None,
) -> ZImageModelInputs:
    """Bring requests of a server to the device, as one batch.

    Args:
        contexts: From `ZImageTokenizer`: validated, with schedule and noise in them; all of one `sharing_key`, or with
            `mixed` such that `fit_together`.
        schedule_spec: The checkpoint's schedule.
        transformer: Will run the steps.
        vae: Encodes the images of requests that have one.
        text_encoder: Encodes the negative prompts of requests that bring features of their prompts alone.
        mixed: From `own_adapters`.

    Raises:
        ValueError: If the requests cannot share a batch.
    """
    first = contexts[0]
    fits = fit_together if mixed else _share
    if any(not fits(first, context) for context in contexts[1:]):
        raise ValueError("requests that share a batch must have the same size, schedule and guidance")
    legs = _legs(first, schedule_spec)
    asked, plan = legs[0].asked, legs[0].plan
    evaluated, guided = planned(asked, plan, transformer.spec.num_layers)
    has_negative = guided.has_negative or any(leg.asked.use_guidance for leg in legs[1:])
    rows = max_caption_tokens(transformer.spec.axes_lens)
    captions = _captions(contexts, text_encoder, has_negative=has_negative, rows=rows)
    pictures = sum(context.num_images_per_prompt for context in contexts)
    begun = [_begin(each, transformer, vae, _legs(each, schedule_spec)[0]) for each in contexts]
    start, kept = [each for each, _ in begun], [masked for _, masked in begun if masked is not None]
    seeds = tuple(seed for each in contexts for seed in seeds_of(evaluated, each.seed, each.num_images_per_prompt))
    made = laid_out(transformer, captions, start, plan, evaluated, guided, pictures, seeds, asked)
    pastes = tuple(each for context in contexts for each in pastes_of_context(context))
    requests = [asked_of(each) for each in contexts] if len(legs) > 1 else []
    later = planned_later(legs, requests, captions, transformer.spec.num_layers)
    made = replace(made, masked=Masked.joined(kept), pastes=pastes, later=later, tiling=asked.tiling)
    return replace(made, loras=() if mixed else asked.loras, mixed=mixed)


def own_adapters(
    contexts: Sequence[PixelContext], specs: ModelSpecs, transformer: ZImageTransformerModel
) -> MixedAdapters | None:
    """The adapters of a batch whose requests differ in them; None where all have the same.

    Raises:
        NotApplied: If an adapter's file is gone, or is another one than when its request was made, or if memory does
            not suffice.
    """
    sets = [(asked_of(each).loras, each.num_images_per_prompt) for each in contexts]
    if len({loras for loras, _ in sets}) == 1:
        return None
    return mixed_of([each for each, pictures in sets for _ in range(pictures)], specs, transformer)


def pastes_of_context(context: PixelContext) -> tuple[Paste | None, ...]:
    """What takes its place again in each of a request's pictures."""
    return pastes_of(asked_of(context), context.num_images_per_prompt)


def _legs(context: PixelContext, spec: ScheduleSpec) -> tuple[Leg, ...]:
    """The legs of a context's request; of one that carries none, the one that stands in it."""
    if isinstance(context, ZImageContext) and context.request:
        return legs_of(request_of(context), spec)
    return (Leg(asked=asked_of(context), plan=schedule_of(context, spec)),)


def _captions(
    contexts: Sequence[PixelContext], text_encoder: ZImageTextEncoderModel, *, has_negative: bool, rows: int
) -> Captions:
    """What the pictures of all requests show."""
    positive: list[tuple[Any, FeatureChange]] = []
    negative: list[tuple[Any, FeatureChange]] = []
    # All requests of a batch have the same, see `sharing_key`; texts, or else features.
    hidden_layer, has_features = asked_of(contexts[0]).hidden_layer, _has_features(contexts[0])
    for context in contexts:
        asked = replace(asked_of(context), num_images_per_prompt=context.num_images_per_prompt)
        pictures = Pictures.of(asked, rows, context.seed, context.num_images_per_prompt)
        texts = _texts(context, has_negative=has_negative)
        if has_features:
            given = [*asked.given_positives, *(asked.given_negatives if has_negative else ())]
            texts = [*given, *encoded_features(text_encoder, texts, hidden_layer)] if texts else given
        first, rest = pictures.shown(texts, 1)
        positive += first
        negative += rest
    if has_features:
        return deduplicate_features(changed(positive), changed(negative))
    return replace(deduplicate_captions(positive, negative), hidden_layer=hidden_layer)


def _has_features(context: PixelContext) -> bool:
    return isinstance(context, ZImageContext) and context.features is not None


def _texts(context: PixelContext, *, has_negative: bool) -> list[Any]:
    """Token ids of what is to be encoded of a request: its prompt, and its negative prompt."""
    texts = [] if _has_features(context) else [np.asarray(context.tokens.array, np.int64)]
    if has_negative and context.negative_tokens is not None:
        texts.append(np.asarray(context.negative_tokens.array, np.int64))
    return texts


def _begin(
    context: PixelContext, transformer: ZImageTransformerModel, vae: ZImageVaeModel, leg: Leg
) -> tuple[FloatArray | Buffer, Masked | None]:
    """What a request of a server begins with, and what it keeps; noise that is not there is drawn from its seed."""
    noise, asked, seed = np.asarray(context.latents, np.float32), leg.asked, context.seed
    if noise.size == 0:
        noise = drawn_noise(asked, seed, context.num_images_per_prompt, vae, leg.plan)
    if context.input_image is not None and asked.image is None:  # filled by hand: no request says more of it
        source = None if seed is None else asked.noise_source(seed)
        image = np.asarray(context.input_image, np.uint8)
        return starting_latents(vae, image, noise, source, context.sigmas[0], asked.tiling), None
    return begin(asked, seed, noise, leg.plan, transformer, vae)
