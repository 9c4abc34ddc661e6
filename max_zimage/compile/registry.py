"""Every compiled graph, once: its Module, what it is made from, what people call it, and how its work is counted.

Components, ahead-of-time compilation, the profiler and tests go by this table; a new graph is an entry here and its
Module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from max.dtype import DType
from max.experimental.nn import Module
from max.graph import DeviceRef, TensorType

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.compile import work
from max_zimage.compile.work import Counter, Shapes, Work
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.conditioning import CaptionConditioning, ModulationTable
from max_zimage.graphs.model.encoder_layers import EncoderLayer, EncoderNorm, EncoderStart
from max_zimage.graphs.model.latents import PackLatents
from max_zimage.graphs.model.text_encoder import HIDDEN_LAYER, TextEncoder
from max_zimage.graphs.model.vae import DecodeLatents, EncodeImage
from max_zimage.graphs.step.advance import PrepareScheduler, SchedulerStep
from max_zimage.graphs.step.compose import UpdatePicture, denoise_step, extrapolated_step
from max_zimage.graphs.step.extrapolate import TaylorUpdate
from max_zimage.graphs.step.first_block import FirstBlockStep
from max_zimage.graphs.step.guided import GuidedUpdate
from max_zimage.graphs.step.masked import KeepUnmasked
from max_zimage.graphs.step.paired import denoise_nag
from max_zimage.graphs.step.positions import Positions

ComponentName = Literal["text_encoder", "transformer", "vae"]
Made = tuple[Module[..., Any], tuple[TensorType, ...]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One graph.

    Attributes:
        name: What progress, profiles, artifacts and `max-zimage compile` call it.
        component: Whose spec it is made from, and whose weights it has if it has any.
        make: The spec to the Module.
        label: What people call it in a profile.
        runs: When it runs, for the documentation.
        count: Counts the work of one call.
        is_keyed: Whether the spec decides what is compiled, beside the types.
        is_float32: Whether it is float32 whatever the model's dtype.
        prefix: What stands before the component's names of its parameters.
        is_replayed: See `max_zimage.compile.compiler.GraphDefinition`.
        is_ahead: Whether it is compiled ahead of time; one that differs from another in nothing but a block is not.
    """

    name: str
    component: ComponentName
    make: Callable[[Any], Module[..., Any]]
    label: str
    runs: str
    count: Callable[[Counter, Shapes], Work | None] = work.not_counted
    is_keyed: bool = True
    is_float32: bool = False
    prefix: str = ""
    is_replayed: bool = False
    is_ahead: bool = True

    def module(self, spec: object, model_dtype: ModelDtype, device: DeviceRef) -> Made:
        """The Module and the types of its inputs.

        Args:
            spec: The component's.
            model_dtype: Of its weights and computation.
            device: Where it will run.
        """
        dtype = DType.float32 if self.is_float32 else DType[model_dtype]
        module: Any = build(lambda: self.make(spec), dtype, device)
        return module, tuple(module.input_types(dtype, device))

    def key_of(self, spec: object) -> object:
        """The spec as `max_zimage.compile.artifacts.artifact_key` takes it."""
        return spec if self.is_keyed else None


_STEP = "transformer."
GRAPHS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="pack",
            component="transformer",
            make=lambda spec: PackLatents(spec.in_channels),
            label="pack",
            runs="once per request",
            count=work.count_pack,
            is_keyed=False,
            is_float32=True,
        ),
        Entry(
            name="prepare_scheduler",
            component="transformer",
            make=lambda _: PrepareScheduler(),
            label="prepare_scheduler",
            runs="not in a picture; a method of MAX's contract",
            is_keyed=False,
            is_float32=True,
        ),
        Entry(
            name="scheduler_step",
            component="transformer",
            make=lambda _: SchedulerStep(),
            label="scheduler_step",
            runs="not in a picture; a method of MAX's contract",
            count=work.count_scheduler_step,
            is_keyed=False,
            is_float32=True,
        ),
        Entry(
            name="modulation",
            component="transformer",
            make=ModulationTable,
            label="modulation table",
            runs="once per request",
            count=work.count_modulation,
        ),
        Entry(
            name="conditioning",
            component="transformer",
            make=CaptionConditioning,
            label="conditioning",
            runs="once per request",
            count=work.count_conditioning,
        ),
        Entry(
            name="text_encoder",
            component="text_encoder",
            make=lambda spec: TextEncoder(spec, spec.layers_used(HIDDEN_LAYER)),
            label="text encoder",
            runs="once per request",
            count=work.count_text_encoder,
            is_replayed=True,
        ),
        Entry(
            name="text_encoder_start",
            component="text_encoder",
            make=EncoderStart,
            label="text encoder, embedding",
            runs="with another hidden layer: once per request",
        ),
        Entry(
            name="text_encoder_layer",
            component="text_encoder",
            make=EncoderLayer,
            label="text encoder, layers",
            runs="with another hidden layer: once per request and layer",
            count=work.count_encoder_layer,
        ),
        Entry(
            name="text_encoder_norm",
            component="text_encoder",
            make=EncoderNorm,
            label="text encoder, last norm",
            runs="with the last hidden layer: once per request",
        ),
        Entry(
            name="denoise",
            component="transformer",
            make=denoise_step,
            label="denoising steps",
            runs="once per evaluation",
            count=work.count_denoise,
            prefix=f"predict.{_STEP}",
            is_replayed=True,
        ),
        Entry(
            name="denoise_nag",
            component="transformer",
            make=denoise_nag,
            label="denoising steps, NAG",
            runs="with normalized attention guidance: once per evaluation that it is part of",
            count=partial(work.count_denoise, is_paired=True),
            prefix=f"predict.{_STEP}",
            is_replayed=True,
        ),
        *(
            Entry(
                name=f"first_block_{block}",
                component="transformer",
                make=partial(FirstBlockStep, first=block),
                label="steps, first block",
                runs="with first-block caching: once per evaluation and branch row",
                prefix=_STEP,
                is_ahead=block == "noise_refiner",
            )
            for block in ("noise_refiner", "layers")
        ),
        Entry(
            name="guidance",
            component="transformer",
            make=UpdatePicture,
            label="guidance",
            runs="with first-block caching: once per evaluation and picture",
            count=work.count_elementwise,
            is_float32=True,
        ),
        Entry(
            name="guided_update",
            component="transformer",
            make=GuidedUpdate,
            label="guidance variant",
            runs="with a guidance variant or rescaling: once per guided evaluation",
            count=work.count_elementwise,
            is_float32=True,
        ),
        Entry(
            name="keep_unmasked",
            component="transformer",
            make=KeepUnmasked,
            label="inpainting",
            runs="with a mask: once before the first step and after each",
            count=work.count_elementwise,
            is_float32=True,
        ),
        Entry(
            name="positions",
            component="transformer",
            make=Positions,
            label="rotary tables",
            runs="with DyPE, in pictures beyond its base resolution: once per evaluation",
            count=work.count_positions,
            is_float32=True,
        ),
        Entry(
            name="taylor_update",
            component="transformer",
            make=TaylorUpdate,
            label="Taylor differences",
            runs="with TaylorSeer: after each computed evaluation",
            count=work.count_taylor_update,
            is_float32=True,
        ),
        Entry(
            name="taylor_step",
            component="transformer",
            make=extrapolated_step,
            label="steps, extrapolated",
            runs="with TaylorSeer: in each extrapolated evaluation",
            count=work.count_elementwise,
            is_float32=True,
        ),
        Entry(
            name="decode",
            component="vae",
            make=DecodeLatents,
            label="VAE decode",
            runs="once per request, at its end",
            count=work.count_decode,
        ),
        Entry(
            name="encode",
            component="vae",
            make=EncodeImage,
            label="VAE encode",
            runs="once per request of image-to-image",
        ),
    )
}
"""Name -> graph, the quick ones first."""

AHEAD = tuple(name for name, entry in GRAPHS.items() if entry.is_ahead)
"""What is compiled ahead of time."""


def spec_of(name: str, specs: ModelSpecs) -> object:
    """The spec of a graph's component."""
    return getattr(specs, GRAPHS[name].component)


def made(name: str, specs: ModelSpecs, model_dtype: ModelDtype, device: DeviceRef) -> Made:
    """The Module of a graph of a model, and the types of its inputs; see `Entry.module`."""
    return GRAPHS[name].module(spec_of(name, specs), model_dtype, device)


def count(counter: Counter, name: str, shapes: Sequence[tuple[int, ...]]) -> Work | None:
    """Count the work of one call; None for a graph that is not counted, or not in this table."""
    entry = GRAPHS.get(name)
    return None if entry is None else entry.count(counter, shapes)
