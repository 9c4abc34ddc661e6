"""A request to device inputs: noise, image, captions, evaluations and branch rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from max.driver import Buffer, Device
from max.dtype import DType

from max_zimage.components import ZImageTransformerModel, ZImageVaeModel
from max_zimage.device.devices import download, joined, moved, upload
from max_zimage.pipeline.batch import Captions, FloatArray, ZImageModelInputs
from max_zimage.pipeline.items import make_items
from max_zimage.pipeline.not_finite import NotFiniteError, usual_suspects
from max_zimage.pipeline.planning import extrapolation, planned, planned_later, seeds_of
from max_zimage.pipeline.start_from_image import begin, pastes_of
from max_zimage.request.legs import legs_of
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.evaluations import Evaluations
from max_zimage.sampling.guidance import Branch, Guidance
from max_zimage.sampling.schedule import Schedule, ScheduleSpec


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
        captions: Its distinct captions, from `max_zimage.pipeline.captions.captions_of_request`.
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
    legs, noise = legs_of(request, schedule_spec), request.latents
    asked, plan = legs[0].asked, legs[0].plan
    if noise is None:
        noise = drawn_noise(asked, request.seed, request.num_images, vae, plan)
    start, masked = begin(request, request.seed, noise, plan, transformer, vae)
    # Said here and not after all steps. A server's requests share a batch: there it is found at the end.
    if isinstance(start, Buffer) and not np.isfinite(download(start)).all():
        what = "the image to begin with became NaN or infinity in the autoencoder's encoder"
        raise NotFiniteError(what, [None] * request.num_images, usual_suspects(vae.dtype_name))
    evaluated, guided = planned(asked, plan, transformer.spec.num_layers, others)
    copies, seeds = request.num_images_per_prompt, seeds_of(evaluated, request.seed, request.num_images)
    first = laid_out(transformer, captions, [start], plan, evaluated, guided, copies, seeds, asked)
    later = planned_later(legs, [request], captions, transformer.spec.num_layers, others)
    pastes, tiling = pastes_of(request, request.num_images), request.tiling
    return replace(first, masked=masked, pastes=pastes, later=later, tiling=tiling, loras=request.loras)


def drawn_noise(
    asked: GenerationRequest, seed: int | None, pictures: int, vae: ZImageVaeModel, plan: Schedule
) -> FloatArray:
    """Starting noise from a seed; where the schedule begins below 1 by its shape, as much of it as that level has."""
    side = vae.spec.downscale
    shape = (vae.spec.latent_channels, asked.height // side, asked.width // side)
    noise = asked.noise_source(seed).starting(pictures, shape)
    return noise if plan.noise_scale == 1 else noise * np.float32(plan.noise_scale)


def laid_out(
    transformer: ZImageTransformerModel,
    captions: Captions,
    start: Sequence[FloatArray | Buffer],
    plan: Schedule,
    evaluated: Evaluations,
    guided: Guidance,
    copies: int,
    seeds: tuple[int, ...],
    asked: GenerationRequest,
) -> ZImageModelInputs:
    """Lay out a batch on the device.

    Args:
        transformer: Will run the steps.
        captions: The distinct captions.
        start: What each request begins with, float32 [pictures, channels, height/8, width/8].
        plan: The schedule.
        evaluated: What the sampler makes of it.
        guided: The branches.
        copies: Pictures of every prompt.
        seeds: Of each picture, where the sampler draws noise.
        asked: Says what all requests of the batch have in common: step cache and position extrapolation.
    """
    latents = joined([_there(each, transformer.device) for each in start])
    batch, channels, height, width = map(int, latents.shape)
    rows, columns, device = height // 2, width // 2, transformer.device
    branches = [0, *([1] if guided.has_negative else []), *range(2, 2 + len(guided.others))]
    shown = replace(captions, rows=_rows(captions.rows, batch, guided))
    lengths = [shown.lengths[row] for row in shown.rows]
    dype = extrapolation(asked, rows, columns)
    spec, with_places = transformer.rope_spec, dype is not None
    return ZImageModelInputs(
        captions=shown,
        latents=latents.view(DType.float32, (batch, channels, rows, 2, columns, 2)),
        schedule=plan,
        evaluations=evaluated,
        guidance=guided,
        height=8 * height,
        width=8 * width,
        num_images_per_prompt=copies,
        items=make_items(spec, rows, columns, lengths, batch, device, branches, with_places=with_places),
        step_cache=asked.step_cache,
        seeds=seeds,
        dype=dype,
    )


def _there(start: FloatArray | Buffer, device: Device) -> Buffer:
    return moved(start, device) if isinstance(start, Buffer) else upload(start, device)


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
