"""How a pipeline comes from a checkpoint: found and checked, then loaded and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from max_zimage.compile.compiler import CompiledGraph, wait_for
from max_zimage.components import ZImageComponent, ZImageTextEncoderModel, ZImageTransformerModel, ZImageVaeModel
from max_zimage.device.plans import Plan
from max_zimage.pipeline import carried, llm_dit
from max_zimage.pipeline.configured import (
    ARGUMENTS,
    Config,
    configuration_of,
    configured_defaults,
    configured_guidance,
    with_options,
    with_torch_dtype,
)
from max_zimage.pipeline.load_components import (
    DEFAULT_STEPS,
    UNPREFIXED_COMPONENT,
    PathName,
    Quantize,
    device_of,
    load_components,
    new_session,
    routed,
    sources_of,
)
from max_zimage.pipeline.loading import CheckedModel, check_model
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.moved import placed_to_load
from max_zimage.pipeline.residency import Residency
from max_zimage.pipeline.worker_plan import plan_for_worker
from max_zimage.request.configuration.values import PLACES
from max_zimage.sampling.step_cache import StepCache
from max_zimage.text.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from typing import Self

    from max.driver import Device
    from max.engine import InferenceSession
    from max.pipelines.diffusion.config import DenoisingCacheConfig
    from max.pipelines.lib.config import PipelineConfig
    from max.pipelines.modeling.base.component_model import ComponentModel

__all__ = ["DEFAULT_STEPS", "UNPREFIXED_COMPONENT", "PretrainedMethods"]


class PretrainedMethods:
    """What a pipeline has for that, and calls under llm-dit's names.

    Attributes:
        tokenizer: Of the checkpoint.
        sources: What was found of it.
        named: The checkpoint and the weight files in place of its own, as they were named; empty where MAX made it.
        residency: Which components are in memory, and who comes and leaves.
        enhancer: Of calls with `enhance=True` that name none; None for the one that goes with the checkpoint.
    """

    tokenizer: PromptTokenizer
    sources: CheckpointManifest
    named: tuple[str, tuple[str, ...]] = ("", ())
    metadata: bool = True
    residency: Residency
    enhancer: Any = None

    carried = carried.of_call
    img2img = llm_dit.img2img
    generate_multipass = llm_dit.generate_multipass

    components: dict[str, type[ComponentModel]]
    unprefixed_weight_component: str
    default_num_inference_steps: int
    text_encoder: ZImageTextEncoderModel
    transformer: ZImageTransformerModel
    vae: ZImageVaeModel
    devices: list[Device]
    session: InferenceSession
    cache_config: DenoisingCacheConfig

    def find(
        self,
        config: PipelineConfig,
        weight_paths: list[Path],
        devices: list[Device],
        sources: CheckpointManifest | None = None,
        plan: Plan | None = None,
        max_memory: int | None = None,
    ) -> None:
        """Take over what was checked before, or else check it now.

        Args:
            config: MAX's configuration.
            weight_paths: In place of the checkpoint's own files.
            devices: The first one is the transformer's.
            sources: The checkpoint, if it was checked.
            plan: Where its components go; what the server of this process says, or else all to the one device.
            max_memory: Bytes that may be taken of the transformer's device.
        """
        self._plan, self._max_memory = plan or plan_for_worker(devices), max_memory
        names = self.unprefixed_weight_component, self._devices_of(devices), self.default_num_inference_steps
        found = sources or sources_of(config, routed(weight_paths, names[0]), *names)
        found = found.with_streams(self._plan.residency == "streamed")
        self.sources = found.with_mesh(self._plan.groups if self._plan.mesh else 0)

    def _load_sub_models(self, weight_paths: list[Path]) -> dict[str, ComponentModel]:
        make = cast("dict[str, type[ZImageComponent]]", self.components)
        where = self._devices_of(self.devices)
        return load_components(make, self.sources, self._plan, where, self.session, self.cache_config)

    def _devices_of(self, devices: list[Device]) -> dict[str, Device]:
        there = self._plan.devices
        return {name: devices[0] if each == there["transformer"] else device_of(each) for name, each in there.items()}

    def compile_parts(self, *groups: list[CompiledGraph]) -> None:
        """Compile graphs, those of components that stay on one CPU together; have components come and leave.

        Args:
            *groups: The graphs of each component.
        """
        parts = {"text_encoder": self.text_encoder, "transformer": self.transformer, "vae": self.vae}
        self.residency = Residency(parts, self.sources, self._plan, self._max_memory)
        for group in [list(chain(*groups))] if self._plan.is_plain else groups:
            wait_for(group)  # what is compiled together has its weights at one time

    @classmethod
    def from_pretrained(
        cls,
        model: PathName | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        weight_path: PathName | Sequence[PathName] = (),
        step_cache: StepCache | str | None = None,
        templates_dir: PathName | None = None,
        quantize: Quantize = None,
        attention_backend: str | None = None,
        embedding_cache_bytes: int | None = None,
        loras: Sequence[Any] = (),
        placement: str = "auto",
        max_memory: int | str | None = None,
        encoder_device: str | None = None,
        dit_device: str | None = None,
        vae_device: str | None = None,
        devices: str | Sequence[str] | None = None,
        split: str | None = None,
        torch_dtype: object = None,
        enhancer: Any = None,
        config: Config = None,
        profile: str | None = None,
    ) -> Self:
        """Load a checkpoint and compile its graphs.

        Args:
            model: A directory in the diffusers layout, or a hub id as "Tongyi-MAI/Z-Image-Turbo"; None: the embedded.
            device: "auto" (the first accelerator, or else the CPU), "cpu", "gpu" or "gpu:N".
            dtype: "auto" (bfloat16 on an accelerator, float32 on a CPU), "float32" or "bfloat16".
            weight_path: Weight files in place of the checkpoint's own, safetensors or GGUF. One that is in no folder
                named text_encoder, transformer or vae goes to every component that it holds, or to the transformer.
            step_cache: What calls use that name none, `FirstBlockCache`, `TaylorSeer` or one in words.
            templates_dir: Templates that calls may name, before the shipped ones; see `max_zimage.request.templates`.
            quantize: Component -> "int8", or for a CPU "q4", or the same as "transformer=int8,text_encoder=q4": their
                matrices are rounded when they are loaded. None is what the variable MAX_ZIMAGE_QUANTIZE says.
            attention_backend: How attention is computed, "max_zimage", "max", "plain" or "auto"; None is what the
                variable MAX_ZIMAGE_PYTORCH_ATTENTION_BACKEND says. See `graphs.model.attention_backends`.
            embedding_cache_bytes: Of kept text features; none if not given, 64 MiB where the text encoder may leave.
            loras: Adapters of calls that name none; see `set_loras`.
            placement: What stays in memory: "resident", "sequential", "streamed" or "auto", the first that fits; see
                `max_zimage.device.placement`.
            max_memory: Of the transformer's device that may be taken, in bytes or as "8GiB"; all there is if not given.
            encoder_device: Where the text encoder runs; `device` if not given.
            dit_device: The same of the transformer, whose device decides on the dtype.
            vae_device: The same of the autoencoder.
            devices: GPUs that compute each step together, as "gpu:0,1" or a list, in place of `device`.
            split: What they share, "tokens", "branches" or "auto"; see docs/several-gpus.md, also for `devices`.
            torch_dtype: `dtype` as diffusers and llm-dit call it, such as torch.bfloat16 or "bfloat16".
            enhancer: Who writes prompts out in calls with `enhance=True`: a name, settings or an object of
                `max_zimage.enhancer`; None for the one that goes with the checkpoint.
            config: A configuration file, for what arguments and calls leave out: `max_zimage.request.configuration`.
            profile: Of that file, or of the one in the default place.

        Raises:
            ValueError: If the model, device or dtype is unsupported, or memory is insufficient; before any is loaded.
        """
        given = {name: value for name, value in locals().items() if name not in ("cls", "model")}
        return cls.from_prepared(cls.prepare(model, **given))

    @classmethod
    def prepare(cls, model: PathName | None = None, **options: Any) -> CheckedModel:
        """Find and check all that `from_pretrained` would load, reading configurations, headers and the tokenizer only.

        Arguments and errors are those of `from_pretrained`, memory apart. Requests can be checked against the result
        before minutes are spent on compiling.
        """
        defaults = {"device": "auto", "dtype": "auto", "weight_path": (), "step_cache": None}
        given = with_torch_dtype(defaults | options)
        configuration = configuration_of(given.pop("config", None), given.pop("profile", None))
        if configuration is not None:
            rest = dict.fromkeys((*PLACES, *ARGUMENTS))
            model, given = with_options(model, rest | given, configuration)
            given["guidance_scale"] = configured_guidance(configuration)
        placing = {name: given.pop(name, None) for name in ("device", *PLACES, "is_offload_configured")}
        said = {name: value for name, value in placing.items() if value is not None}
        enhancer = given.pop("enhancer", None)
        checked = replace(check_model(model, **given, placing=said), enhancer=enhancer)
        if configuration is None:
            return checked
        changed = configured_defaults(checked.sources.defaults, checked.sources.limits, configuration)
        metadata = not configuration.start.get("no_metadata", False)
        return replace(checked, sources=checked.sources.with_defaults(**changed), metadata=metadata)

    @classmethod
    def from_prepared(cls, prepared: CheckedModel) -> Self:
        """Load and compile what `prepare` has found.

        Raises:
            NotEnoughMemoryError: If the weights do not fit. Raised before anything is loaded.
            RuntimeError: If MAX cannot compile a graph, or cannot be used in this process because it is a fork.
        """
        prepared = placed_to_load(prepared)
        session, cache = new_session(prepared.devices), prepared.config.runtime.denoising_cache
        where = (prepared.config, session, prepared.devices, prepared.weight_paths)
        make: Any = cls
        chosen = {"plan": prepared.plan, "max_memory": prepared.wish.max_memory}
        pipeline = make(*where, cache_config=cache, sources=prepared.sources, **chosen)
        pipeline.named, pipeline.metadata = prepared.named, prepared.metadata
        pipeline.enhancer = prepared.enhancer
        pipeline.tokenizer, pipeline.text_encoder.kept_features = prepared.tokenizer, prepared.kept_features()
        pipeline.use_step_cache(prepared.sources.defaults.step_cache)
        pipeline.set_loras(prepared.sources.defaults.loras)
        made: Self = pipeline
        return made
