"""Our optimisations, one switch each, on top of one another: seconds of a picture, and its distance to the reference's.

The embedded model draws in float32 on a CPU. The first rows are diffusers; then a plain port to MAX, whose switches go
on one by one; with the last lossless one it is the engine. Rows labelled lossy are alternatives to each other, each on
top of all that is lossless. Text encoder and decoder are the engine's in every row of ours, without the project's
kernels until the last lossless one. What is switched off compiles together, for the first of these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from max.driver import Buffer
from max.dtype import DType
from max.experimental.nn import Module
from max.graph import DeviceRef

from benchmarks.compiling import CompiledModule, Unit, compiled_together
from benchmarks.drawing import (
    CACHES,
    EAGER,
    OURS,
    OURS_BFLOAT16,
    PLAIN,
    PROMPT,
    Draw,
    Scene,
    bound,
    compiled_diffusers,
    diffusers_draw,
    load_diffusers,
    our_draw,
    our_pipelines,
)
from benchmarks.measure import Row, Timing, interleave, max_abs, psnr
from benchmarks.waterfall_graphs import ENGINE, FUSED, HALVES, SEPARATE, Guidance, PlainStep, TabledStep, VelocityStep
from max_zimage import ZImageModelInputs, ZImagePipeline
from max_zimage.device.devices import upload
from max_zimage.graphs.kernel_library import without_kernels
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.advance import SchedulerStep
from max_zimage.pipeline.batch import caption_arguments
from max_zimage.pipeline.step_inputs import make_tables
from max_zimage.request.request import GenerationRequest
from tests.references.engine_runs import inputs_of

_PREFIXES = (
    *("transformer.", "step.transformer.", "tabled.step.transformer."),
    *("conditioning.", "tabled.conditioning.", "table."),
)
"""Where the steps of `benchmarks.waterfall_graphs` have the transformer's weights."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The engine with some switches off.

    Attributes:
        switch: What is on here and was off in the row before.
        make: The step, from the transformer's shape and a name of its own.
        table: Whether the modulation table is made before the loop.
        captions: Whether captions are embedded and refined before the loop.
    """

    switch: str
    make: Callable[..., Module[..., Any]]
    table: bool = False
    captions: bool = False


VARIANTS = (
    Variant(switch="ours, a plain port", make=partial(PlainStep, kind=SEPARATE)),
    Variant(switch="+ one product each for q, k, v and for w1, w3", make=partial(PlainStep, kind=FUSED)),
    Variant(switch="+ RoPE over halves, not pairs", make=partial(PlainStep, kind=HALVES)),
    Variant(switch="+ flash attention", make=partial(PlainStep, kind=ENGINE)),
    Variant(switch="+ modulation once a schedule", make=partial(TabledStep, kind=ENGINE), table=True),
    Variant(switch="+ captions once a request", make=partial(VelocityStep, kind=ENGINE), table=True, captions=True),
)
INSIDE = "+ guidance and Euler inside the step"
LAST = "+ the project's kernels: the engine"
BFLOAT16 = "+ bfloat16"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured.

    Attributes:
        full: Scenes that every row draws.
        long: Scenes that the engine draws with and without step caches.
        caches: Label -> step cache of the scenes in `full`; those in `long` take the defaults.
        variants: How many of `VARIANTS`, the last ones; with none, nothing that the engine does not compile by
            itself.
        compile_diffusers: Whether torch.compile takes part.
    """

    full: tuple[Scene, ...]
    long: tuple[Scene, ...]
    caches: tuple[str, ...]
    variants: int
    compile_diffusers: bool


FULL = Setting(
    full=(Scene(side=256, steps=8, guidance=2.0),),
    long=(Scene(side=128, steps=50, guidance=4.0),),
    caches=("first_block", "taylorseer:cache_interval=2,warmup_steps=3"),
    variants=len(VARIANTS),
    compile_diffusers=True,
)
QUICK = Setting(
    full=(Scene(side=96, steps=4, guidance=2.0),),
    long=(),
    caches=("taylorseer:cache_interval=2,warmup_steps=2",),
    variants=1,
    compile_diffusers=False,
)
QUICKEST = replace(QUICK, variants=0)
"""Compiles nothing that the engine does not."""


def rows(setting: Setting, repeats: int) -> list[Row]:
    """Measure every row in the scenes of few steps, the engine and its step caches in the long ones."""
    pipelines, diffusers = our_pipelines(more=setting.variants > 0), load_diffusers()
    draws: dict[str, Draw] = {EAGER: diffusers_draw(diffusers)}
    compile_seconds: dict[str, float] = {}
    failures: list[Row] = []
    if setting.compile_diffusers:
        theirs = compiled_diffusers(setting.full)
        failures = [
            Row(case="torch.compile", variant=name, dtype="float32", sizes="", note=note)
            for name, note in theirs.failures
        ]
        if theirs.draw is not None:
            draws[theirs.name], compile_seconds[theirs.name] = theirs.draw, theirs.seconds
    if setting.variants:
        variants = VARIANTS[len(VARIANTS) - setting.variants :]
        ours, taken = variant_draws(pipelines[PLAIN], diffusers.transformer, variants)
        draws |= {**ours, INSIDE: our_draw(pipelines[PLAIN])}
        compile_seconds |= dict.fromkeys(list(ours)[:1], taken)
    draws[LAST] = our_draw(pipelines[OURS])
    measured = [*failures]
    for scene in setting.full:
        lossy = _lossy(pipelines, setting.caches)
        measured += _scene_rows(scene, draws, lossy, repeats, compile_seconds)
    for scene in setting.long:
        exact = {name: draws[name] for name in (EAGER, LAST)}
        measured += _scene_rows(scene, exact, _lossy(pipelines, CACHES), repeats, {})
    return measured


def _lossy(pipelines: Mapping[str, ZImagePipeline], caches: Sequence[str]) -> dict[str, Draw]:
    lossy = {f"+ {cache}": our_draw(pipelines[OURS], cache) for cache in caches}
    if OURS_BFLOAT16 in pipelines:
        lossy[BFLOAT16] = our_draw(pipelines[OURS_BFLOAT16])
    return lossy


def _scene_rows(
    scene: Scene, exact: Mapping[str, Draw], lossy: Mapping[str, Draw], repeats: int, seconds: Mapping[str, float]
) -> list[Row]:
    calls = {name: bound(draw, scene) for name, draw in {**exact, **lossy}.items()}
    pictures = {name: call() for name, call in calls.items()}
    timings = interleave(calls, repeats, warmups=0)
    notes = step_notes(timings, list(lossy))
    return [
        Row(
            case=f"waterfall {scene.sizes}",
            variant=name,
            dtype="bfloat16" if name == BFLOAT16 else "float32",
            sizes=scene.sizes,
            timing=timing,
            compile_seconds=seconds.get(name),
            psnr_db=psnr(pictures[name], pictures[EAGER]),
            max_abs=max_abs(pictures[name], pictures[EAGER]),
            reference=name == EAGER,
            note=notes[name],
        )
        for name, timing in timings.items()
    ]


def step_notes(timings: Mapping[str, Timing], lossy: Sequence[str]) -> dict[str, str]:
    """Lossless or lossy, and how much faster than the row that a switch is on top of.

    Args:
        timings: Of every row, in order, the lossy ones last.
        lossy: Their names; each is on top of the last lossless row.
    """
    notes: dict[str, str] = {}
    before = ""
    for name, timing in timings.items():
        gain = f", {timings[before].median / timing.median:.2f}x the row {_place(name in lossy)}" if before else ""
        notes[name] = f"{'lossy' if name in lossy else 'lossless'}{gain}"
        before = before if name in lossy else name
    return notes


def _place(lossy: bool) -> str:
    return "without" if lossy else "before"


def variant_draws(
    pipeline: ZImagePipeline, transformer: torch.nn.Module, variants: Sequence[Variant]
) -> tuple[dict[str, Draw], float]:
    """Compile variants together, in plain operations.

    Args:
        pipeline: The engine without its kernels, whose other graphs they use.
        transformer: Diffusers' transformer with the same weights.
        variants: Some of `VARIANTS`.

    Returns:
        Draw by switch, and the seconds of compiling.
    """
    if not variants:
        return {}, 0.0
    spec, dtype, device = pipeline.transformer.spec, pipeline.transformer.dtype, DeviceRef.CPU()
    units = {f"step_{index}": _unit(variant, f"step_{index}", spec, dtype) for index, variant in enumerate(variants)}
    units["guidance"] = Unit(make=lambda: Guidance(spec), types=lambda module: module.input_types(device))
    units["euler"] = Unit(make=SchedulerStep, types=lambda module: module.input_types(dtype, device))
    with without_kernels():
        graphs, seconds = compiled_together(units, pipeline.transformer.dtype_name, weights(pipeline, transformer))
    rest = (graphs["guidance"], graphs["euler"])
    draws = {
        variant.switch: _draw(pipeline, variant, graphs[f"step_{index}"], *rest)
        for index, variant in enumerate(variants)
    }
    return draws, seconds


def _unit(variant: Variant, name: str, spec: TransformerSpec, dtype: DType) -> Unit:
    return Unit(
        make=lambda: variant.make(spec, name=name), types=lambda module: module.input_types(dtype, DeviceRef.CPU())
    )


def weights(pipeline: ZImagePipeline, transformer: torch.nn.Module) -> dict[str, Buffer]:
    """The transformer's weights, both as the engine orders them and as diffusers does, by the names of every step."""
    with without_kernels():
        named, state = pipeline.transformer.load_weights(), transformer.state_dict()
    for name, tensor in state.items():
        if ".attention." in name or ".feed_forward." in name:
            named.setdefault(name, upload(tensor.numpy(), pipeline.device))
        if name.endswith(".attention.to_q.weight"):
            stem = name.removesuffix("q.weight")
            stacked = torch.cat([state[f"{stem}{part}.weight"] for part in "qkv"])
            named[f"{stem}qkv.weight"] = upload(stacked.numpy(), pipeline.device)
    return {prefix + name: data for prefix in _PREFIXES for name, data in named.items()}


def _draw(
    pipeline: ZImagePipeline, variant: Variant, step: CompiledModule, guidance: CompiledModule, euler: CompiledModule
) -> Draw:
    def draw(scene: Scene) -> np.ndarray:
        arguments = {"prompt": PROMPT, "latents": scene.noise, **scene.arguments()}
        sources = pipeline.sources
        request = GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, **arguments)
        inputs = inputs_of(pipeline, request)
        latents = pipeline.preprocess_latents(inputs.latents)
        captions = _captions(pipeline, variant, inputs)
        rows = inputs.items
        positive, negative = rows.positive_rows, rows.negative_rows
        places = (rows.image_rope, rows.rope, rows.valid_length, rows.offsets, rows.latent_rows, rows.variants)
        for timed, (scale, limit, delta) in _timed(pipeline, variant, inputs):
            (velocity,) = step(latents, *captions, *places, *timed)
            (prediction,) = guidance(velocity, positive, negative, scale, limit)
            (latents,) = euler(latents, prediction, delta)
        side = np.empty(scene.side // 16)
        return np.asarray(pipeline.decode_latents(latents, side, side, "np"))[0]

    return draw


def _captions(pipeline: ZImagePipeline, variant: Variant, inputs: ZImageModelInputs) -> tuple[Buffer, ...]:
    """What a step takes of the captions."""
    transformer = pipeline.transformer
    features = pipeline.text_encoder(inputs.captions.tokens)
    arguments = (features, *caption_arguments(transformer.rope_spec, inputs.captions, pipeline.device))
    return tuple(transformer.conditioning(*arguments)) if variant.captions else arguments


def _timed(
    pipeline: ZImagePipeline, variant: Variant, inputs: ZImageModelInputs
) -> list[tuple[tuple[Buffer, ...], tuple[Buffer, ...]]]:
    """What each step takes of the schedule, and what guidance and the update take."""
    plan, guidance = inputs.evaluations, inputs.guidance
    if variant.table:
        tables = make_tables(inputs, *pipeline.transformer.modulation_table(plan.timesteps), pipeline.device)
        timed: list[tuple[Buffer, ...]] = list(zip(tables.modulation, tables.final_scale, strict=True))
    else:
        times = upload(plan.timesteps, pipeline.device)
        timed = [(times[i : i + 1],) for i in range(plan.count)]
    buffers = [upload(each, pipeline.device) for each in (guidance.negative, guidance.limits, inputs.schedule.deltas)]
    return [(time, tuple(buffer[i : i + 1] for buffer in buffers)) for i, time in enumerate(timed)]
