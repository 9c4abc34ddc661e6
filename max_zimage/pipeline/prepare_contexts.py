"""Requests of a server, as the contexts that `max serve` sends, to device inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from max.driver import Buffer
from max.pipelines.context import PixelContext

from max_zimage.components import ZImageTransformerModel, ZImageVaeModel
from max_zimage.pipeline.batch import Captions, FloatArray, ZImageModelInputs
from max_zimage.pipeline.captions import Pictures, deduplicate_captions
from max_zimage.pipeline.context import ZImageContext, asked_of, schedule_of, step_cache_of
from max_zimage.pipeline.planning import planned
from max_zimage.pipeline.prepare import drawn_noise, laid_out, seeds_of
from max_zimage.pipeline.start_from_image import starting_latents
from max_zimage.sampling.positions import max_caption_tokens
from max_zimage.sampling.schedule import Schedule, ScheduleSpec


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


def inputs_of_contexts(
    contexts: Sequence[PixelContext],
    schedule_spec: ScheduleSpec,
    transformer: ZImageTransformerModel,
    vae: ZImageVaeModel,
) -> ZImageModelInputs:
    """Bring requests of a server to the device, as one batch.

    Args:
        contexts: From `ZImageTokenizer`: validated, with schedule and noise in them; all of one `sharing_key`.
        schedule_spec: The checkpoint's schedule.
        transformer: Will run the steps.
        vae: Encodes the images of requests that have one.

    Raises:
        ValueError: If the requests have not the same `sharing_key`.
    """
    first = contexts[0]
    if any(sharing_key(context) != sharing_key(first) for context in contexts[1:]):
        raise ValueError("requests that share a batch must have the same size, schedule and guidance")
    asked, plan = asked_of(first), schedule_of(first, schedule_spec)
    evaluated, guided = planned(asked, plan, transformer.spec.num_layers)
    captions = _captions(
        contexts, has_negative=guided.has_negative, rows=max_caption_tokens(transformer.spec.axes_lens)
    )
    pictures = sum(context.num_images_per_prompt for context in contexts)
    start = [_start(each, vae, schedule_of(each, schedule_spec)) for each in contexts]
    seeds = tuple(seed for each in contexts for seed in seeds_of(evaluated, each.seed, each.num_images_per_prompt))
    laid = laid_out(transformer, captions, start, plan, evaluated, guided, pictures, seeds, asked.step_cache)
    return replace(laid, tiling=asked.tiling)


def _captions(contexts: Sequence[PixelContext], *, has_negative: bool, rows: int) -> Captions:
    """What the pictures of all requests show."""
    positive, negative = [], []
    for context in contexts:
        texts = [np.asarray(context.tokens.array, np.int64)]
        if has_negative and context.negative_tokens is not None:
            texts.append(np.asarray(context.negative_tokens.array, np.int64))
        asked = replace(asked_of(context), num_images_per_prompt=context.num_images_per_prompt)
        pictures = Pictures.of(asked, rows, context.seed, context.num_images_per_prompt)
        first, rest = pictures.shown(texts, 1)
        positive += first
        negative += rest
    return deduplicate_captions(positive, negative)


def _start(context: PixelContext, vae: ZImageVaeModel, plan: Schedule) -> FloatArray | Buffer:
    """What a request of a server begins with; noise that is not there is drawn from its seed."""
    noise, asked, seed = np.asarray(context.latents, np.float32), asked_of(context), context.seed
    if noise.size == 0:
        noise = drawn_noise(asked, seed, context.num_images_per_prompt, vae, plan)
    if context.input_image is None:
        return noise
    source = None if seed is None else asked.noise_source(seed)
    return starting_latents(
        vae, np.asarray(context.input_image, np.uint8), noise, source, context.sigmas[0], asked.tiling
    )
