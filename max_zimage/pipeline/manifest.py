"""Where a pipeline's components come from: MAX's configuration to files, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from max.driver import Device
from max.pipelines.lib.config import MAXModelConfig, PipelineConfig

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.checkpoint.description import describe
from max_zimage.checkpoint.expand import text_encoder_names, transformer_names, vae_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.locate import COMPONENTS, find_component_files, resolve_model, route_weight_files
from max_zimage.checkpoint.plan import LoadPlan, holds_final_norm, plan
from max_zimage.compile.device_check import check_device as check_device
from max_zimage.device.dtypes import ModelDtype, model_dtype
from max_zimage.errors import CheckpointError, RequestError
from max_zimage.graphs.model.text_encoder import HIDDEN_LAYER, TextEncoderSpec
from max_zimage.pipeline.storages import Storage, said
from max_zimage.request.cache_checks import check_shared
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.templates import Templates
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """A checked checkpoint.

    Attributes:
        specs: Shapes of all components.
        limits: What can be drawn at most.
        configs: Component -> its configuration as Hugging Face's JSON has it.
        dtypes: Component -> dtype that it runs in.
        files: Component -> its weight files; without those that are left alone.
        plans: Component -> what is loaded from them.
        defaults: What a request gets that says nothing.
        attention: Component -> how its graphs compute attention; None, as where it is not named, for what dtype and
            device choose.
        attention_wish: The one that a user named; empty for none.
    """

    specs: ModelSpecs
    limits: Limits
    configs: Mapping[str, dict[str, object]]
    dtypes: Mapping[str, ModelDtype]
    files: Mapping[str, list[Path]]
    plans: Mapping[str, LoadPlan]
    defaults: RequestDefaults
    attention: Mapping[str, str | None] = field(default_factory=dict)
    attention_wish: str = ""

    def with_defaults(self, **changed: Any) -> CheckpointManifest:
        """The same, with other defaults for requests that say nothing: attributes of `RequestDefaults`."""
        return replace(self, defaults=replace(self.defaults, **changed))

    def with_step_cache(self, cache: StepCache | None) -> CheckpointManifest:
        """The same, with another step cache for those."""
        return self.with_defaults(step_cache=cache)

    def with_templates(self, folder: Path) -> CheckpointManifest:
        """The same, with the templates of a folder before the shipped ones.

        Raises:
            TemplateError: If one of them cannot be read.
        """
        templates = Templates(folder)
        _ = templates.all
        return self.with_defaults(templates=templates)

    def with_streams(self, streams_blocks: bool) -> CheckpointManifest:
        """The same, whose requests are those that can be drawn with streamed blocks, or all.

        Raises:
            RequestError: If the step cache of those that say nothing cannot.
        """
        cache = self.defaults.step_cache
        if streams_blocks and isinstance(cache, FirstBlockCache):
            message = "{field} {cache} and streamed blocks do not go together; take taylorseer, or another placement"
            raise RequestError.of("step_cache", message, cache=cache)
        return replace(self, limits=replace(self.limits, streams_blocks=streams_blocks))

    def with_mesh(self, groups: int) -> CheckpointManifest:
        """The same, whose requests are those that can be drawn on several devices, or all.

        Args:
            groups: Of devices; 0 for one device.

        Raises:
            RequestError: If the step cache of those that say nothing cannot, or weights are quantized in memory.
        """
        if groups and self.quantize:
            message = "{field} {given} and devices exclude each other: weights quantized in memory are for one device; "
            raise RequestError.of("quantize", f"{message}leave one of the two out", given=self.quantize)
        check_shared(self.defaults.step_cache, groups)
        return replace(self, limits=replace(self.limits, groups=groups))

    def with_storages(self, storages: Mapping[str, Storage]) -> CheckpointManifest:
        """The same, with matrices of some components quantized when they are loaded."""
        plans = {name: replace(each, kept_as=storages.get(name)) for name, each in self.plans.items()}
        return replace(self, plans=plans)

    @property
    def quantize(self) -> str:
        """Which components have quantized matrices, as a user says it, such as "transformer=int8"; empty for none."""
        return ",".join(f"{name}={said(each.kept_as)}" for name, each in self.plans.items() if each.kept_as)

    @property
    def attention_backend(self) -> str:
        """The attention that was chosen, as a user says it; empty where device and dtype choose."""
        return next((each for each in self.attention.values() if each), "")

    @property
    def nbytes(self) -> dict[str, int]:
        """Component -> memory that its weights take."""
        return {name: checked.nbytes(self.dtypes[name]) for name, checked in self.plans.items()}


def find_sources(
    config: PipelineConfig,
    replaced: Mapping[str, list[Path]],
    unprefixed_component: str,
    device: Device,
    default_steps: int,
    without: Collection[str] = (),
) -> CheckpointManifest:
    """Find and check everything that a pipeline loads, reading configurations and headers only.

    Args:
        config: MAX's configuration, one model entry a component.
        replaced: Component -> files that take the place of the checkpoint's own, from `route_weight_files`.
        unprefixed_component: Takes those that MAX's configuration names and that stand in no component's folder.
        device: Where the components run.
        default_steps: Denoising steps of a checkpoint that is not distilled.
        without: Components whose files are left alone; the text encoder may be one.

    Raises:
        ConfigError: If a configuration is not one that the graphs compute.
        CheckpointError: With everything that is wrong with the files of all components.
        ValueError: If the device lacks a library, or a variable of `device_graphs` or `device_weights` has no meaning.
    """
    check_device(device)
    models = config.models
    described = describe(config, default_steps, without=without)
    files = _weight_files(
        {name: models[name] for name in COMPONENTS if name not in without}, replaced, unprefixed_component
    )
    plans = _plans(described.specs, files)
    has_final_norm = "text_encoder" not in plans or holds_final_norm(plans["text_encoder"])
    return CheckpointManifest(
        specs=described.specs,
        limits=replace(described.limits, has_final_norm=has_final_norm),
        configs=described.configs,
        dtypes={name: model_dtype(models[name].quantization_encoding or "auto", device) for name in COMPONENTS},
        files=files,
        plans=plans,
        defaults=described.defaults,
    )


def text_encoder_plan(spec: TextEncoderSpec, files: Sequence[Path]) -> LoadPlan:
    """What is loaded of a text encoder's files.

    Raises:
        CheckpointError: With everything that is wrong with them.
    """
    return plan(text_encoder_names(spec, spec.layers_used(HIDDEN_LAYER)), open_source(files))


def _weight_files(
    models: Mapping[str, MAXModelConfig], replaced: Mapping[str, list[Path]], unprefixed_component: str
) -> dict[str, list[Path]]:
    named = {name: model.resolved_weight_paths() for name, model in models.items() if model.weight_path}
    # MAX writes a pipeline-wide --weight-path into every component; only the folder tells whose it is.
    if len(named) == len(models) and len({tuple(paths) for paths in named.values()}) == 1:
        named = route_weight_files(next(iter(named.values())), COMPONENTS, unprefixed_component)
    named |= replaced
    return {name: named[name] if name in named else _own_files(name, model) for name, model in models.items()}


def _own_files(component: str, model: MAXModelConfig) -> list[Path]:
    if model.subfolder is None:  # a folder that holds this component alone
        return find_component_files(Path(model.model_path), component, flat=True)
    return find_component_files(resolve_model(model.model_path, model.huggingface_model_revision), component)


def _plans(specs: ModelSpecs, files: Mapping[str, list[Path]]) -> dict[str, LoadPlan]:
    """Check all components, so that one message names everything that is wrong."""
    encoder = specs.text_encoder
    names = {
        "text_encoder": text_encoder_names(encoder, encoder.layers_used(HIDDEN_LAYER)),
        "transformer": transformer_names(specs.transformer),
        "vae": vae_names(specs.vae),
    }
    plans, problems = {}, []
    for component, expected in names.items():
        if component not in files:
            continue
        try:
            plans[component] = plan(expected, open_source(files[component]))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    return plans
