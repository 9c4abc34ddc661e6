"""Requests to device inputs, from Python's `GenerationRequest` and from the context that `max serve` sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from max.driver import Buffer
from max.dtype import DType
from max.pipelines.context import PixelContext

from max_zimage.components import ZImageTransformerModel, ZImageVaeModel
from max_zimage.device.devices import download, joined, upload
from max_zimage.pipeline.batch import Captions, FloatArray, ZImageModelInputs, make_items
from max_zimage.pipeline.captions import deduplicate_captions
from max_zimage.pipeline.context import ZImageContext, asked_of, schedule_of, step_cache_of
from max_zimage.pipeline.not_finite import NotFiniteError, usual_suspects
from max_zimage.pipeline.start_from_image import starting_latents
from max_zimage.request.guidance_checks import skipped_layers
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling import samplers
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Branch, Guidance, Variant, VariantName, cfg, combined, skip_layer
from max_zimage.sampling.noise import image_seed
from max_zimage.sampling.schedule import Schedule, ScheduleSpec
from max_zimage.sampling.step_cache import StepCache


def inputs_of_request(
    request: GenerationRequest,
    captions: Captions,
    schedule_spec: ScheduleSpec,
    transformer: ZImageTransformerModel,
    vae: ZImageVaeModel,
    *,
    others: Callable[[Evaluations], Sequence[Branch]] | None = None,
) -> ZImageModelInputs:
    """Bring a request to the device.

    Args:
        request: The request.
        captions: Its distinct captions, from `captions_of_request`.
        schedule_spec: The checkpoint's schedule.
        transformer: Will run the steps.
        vae: Encodes the image of a request that has one.
        others: Branches on top of classifier-free guidance, for the evaluations that the sampler makes; none if not
            given.

    Raises:
        RequestError: If a step would have no length in float32.
        NotFiniteError: If the encoder makes NaN or infinity of the image.
        ValueError: If a branch is to be seen under a negative prompt and the request has none.
    """
    plan, noise = request.schedule(schedule_spec), request.latents
    if noise is None:
        noise = _drawn(request, request.seed, request.num_images, vae, plan)
    start: FloatArray | Buffer = noise
    if request.start_image is not None:
        source = None if request.seed is None else request.noise_source(request.seed)
        start = starting_latents(vae, request.start_image, noise, source, plan.sigmas[0])
        # Said here and not after all steps. A server's requests share a batch: there it is found at the end.
        if not np.isfinite(download(start)).all():
            what = "the image to begin with became NaN or infinity in the autoencoder's encoder"
            raise NotFiniteError(what, [None] * request.num_images, usual_suspects(vae.dtype_name))
    evaluated, guided = _planned(request, plan, transformer.spec.num_layers, others)
    copies, seeds = request.num_images_per_prompt, _seeds(evaluated, request.seed, request.num_images)
    return _inputs(transformer, captions, [start], plan, evaluated, guided, copies, seeds, request.step_cache)


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
    evaluated, guided = _planned(asked, plan, transformer.spec.num_layers)
    texts = [np.asarray(context.tokens.array, np.int64) for context in contexts]
    if guided.has_negative:
        negatives = [context.negative_tokens for context in contexts]
        texts += [np.asarray(negative.array, np.int64) for negative in negatives if negative is not None]
    copies = [context.num_images_per_prompt for context in contexts]
    captions, start = deduplicate_captions(texts, (), copies=copies), [_start(each, vae, plan) for each in contexts]
    seeds = tuple(seed for each in contexts for seed in _seeds(evaluated, each.seed, each.num_images_per_prompt))
    return _inputs(transformer, captions, start, plan, evaluated, guided, sum(copies), seeds, asked.step_cache)


def _start(context: PixelContext, vae: ZImageVaeModel, plan: Schedule) -> FloatArray | Buffer:
    """What a request of a server begins with; noise that is not there is drawn from its seed."""
    noise, asked, seed = np.asarray(context.latents, np.float32), asked_of(context), context.seed
    if noise.size == 0:
        noise = _drawn(asked, seed, context.num_images_per_prompt, vae, plan)
    if context.input_image is None:
        return noise
    source = None if seed is None else asked.noise_source(seed)
    return starting_latents(vae, np.asarray(context.input_image, np.uint8), noise, source, context.sigmas[0])


def _planned(
    asked: GenerationRequest,
    plan: Schedule,
    num_layers: int,
    others: Callable[[Evaluations], Sequence[Branch]] | None = None,
) -> tuple[Evaluations, Guidance]:
    """What the sampler asks of the model, and the branches of each evaluation."""
    evaluated = samplers.plan(asked.sampler, plan)
    branches = [*_skipping(asked, evaluated, num_layers), *(others(evaluated) if others else ())]
    return evaluated, combined(_classifier_free(asked, evaluated), branches)


def _classifier_free(asked: GenerationRequest, evaluated: Evaluations) -> Guidance:
    """What the request's positive and negative branches make."""
    variant = Variant(
        name=cast(VariantName, asked.guidance_variant),
        zero_init=asked.zero_init,
        eta=asked.apg_eta,
        momentum=asked.apg_momentum,
        norm_threshold=asked.apg_norm_threshold,
        rescale=asked.guidance_rescale,
    )
    return cfg.guidance(
        evaluated,
        asked.guidance_scale,
        asked.cfg_truncation,
        asked.cfg_normalization,
        asked.guidance_interval,
        variant,
    )


def _skipping(asked: GenerationRequest, evaluated: Evaluations, num_layers: int) -> list[Branch]:
    """The branch of skip-layer guidance, if the request has it."""
    if not asked.slg_scale:
        return []
    layers = skipped_layers(asked.slg_layers, num_layers)
    found = skip_layer.branch(
        evaluated, scale=asked.slg_scale, layers=layers, start=asked.slg_start, stop=asked.slg_stop
    )
    return [found] if found.scales.any() else []  # its steps may lie in another part of the run


def _drawn(
    asked: GenerationRequest, seed: int | None, pictures: int, vae: ZImageVaeModel, plan: Schedule
) -> FloatArray:
    """Starting noise from a seed; where the schedule begins below 1 by its shape, as much of it as that level has."""
    side = vae.spec.downscale
    shape = (vae.spec.latent_channels, asked.height // side, asked.width // side)
    noise = asked.noise_source(seed).starting(pictures, shape)
    return noise if plan.noise_scale == 1 else noise * np.float32(plan.noise_scale)


def _seeds(evaluated: Evaluations, seed: int | None, pictures: int) -> tuple[int, ...]:
    """The seeds of a request's pictures, where the sampler draws noise."""
    if not evaluated.noisy.any():
        return ()
    if seed is None:
        raise ValueError("a sampler that draws noise needs a seed, and the request has none")
    return tuple(image_seed(seed, index) for index in range(pictures))


def _inputs(
    transformer: ZImageTransformerModel,
    captions: Captions,
    start: Sequence[FloatArray | Buffer],
    plan: Schedule,
    evaluated: Evaluations,
    guided: Guidance,
    copies: int,
    seeds: tuple[int, ...],
    step_cache: StepCache | None,
) -> ZImageModelInputs:
    latents = joined([each if isinstance(each, Buffer) else upload(each, transformer.device) for each in start])
    batch, channels, height, width = map(int, latents.shape)
    rows, columns, device = height // 2, width // 2, transformer.device
    branches = [0, *([1] if guided.has_negative else []), *range(2, 2 + len(guided.others))]
    shown = replace(captions, rows=_rows(captions.rows, batch, guided))
    lengths = [shown.lengths[row] for row in shown.rows]
    return ZImageModelInputs(
        captions=shown,
        latents=latents.view(DType.float32, (batch, channels, rows, 2, columns, 2)),
        schedule=plan,
        evaluations=evaluated,
        guidance=guided,
        height=8 * height,
        width=8 * width,
        num_images_per_prompt=copies,
        items=make_items(transformer.rope_spec, rows, columns, lengths, batch, device, branches),
        step_cache=step_cache,
        seeds=seeds,
    )


def _rows(given: Sequence[int], batch: int, guided: Guidance) -> tuple[int, ...]:
    """Which caption each branch row shows: of the positive branch, the negative one, and of those on top."""
    by_caption = {"positive": tuple(given[:batch]), "negative": tuple(given[batch:])}
    if not by_caption["negative"] and any(branch.caption == "negative" for branch in guided.others):
        raise ValueError(
            "a branch under the negative prompt needs one, and without guidance a request has none; "
            "ask for guidance_scale above 0"
        )
    first = by_caption["positive"] + (by_caption["negative"] if guided.has_negative else ())
    return first + tuple(row for branch in guided.others for row in by_caption[branch.caption])
