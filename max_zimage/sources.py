"""Where a pipeline's components come from: MAX's configuration to files, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from max.driver import Device
from max.pipelines.lib.config import MAXModelConfig, PipelineConfig

from max_zimage.checkpoint import LoadPlan, ModelDtype, plan
from max_zimage.components.text_encoder import HIDDEN_LAYER
from max_zimage.config import ModelSpecs, model_specs
from max_zimage.cublas import check_cublas
from max_zimage.devices import model_dtype
from max_zimage.limits import Limits, RequestDefaults
from max_zimage.model_files import COMPONENTS, find_component_files, resolve_model, route_weight_files
from max_zimage.safetensors_files import CheckpointError, scan
from max_zimage.step_cache import StepCache, configured
from max_zimage.weight_places import text_encoder_names, transformer_names, vae_names


@dataclass(frozen=True, kw_only=True)
class Sources:
    """A checked checkpoint.

    Attributes:
        specs: Shapes of all components.
        configs: Component -> its configuration as Hugging Face's JSON has it.
        dtypes: Component -> dtype that it runs in.
        files: Component -> its weight files.
        plans: Component -> what is loaded from them.
        defaults: What a request gets that says nothing.
    """

    specs: ModelSpecs
    configs: Mapping[str, dict[str, object]]
    dtypes: Mapping[str, ModelDtype]
    files: Mapping[str, list[Path]]
    plans: Mapping[str, LoadPlan]
    defaults: RequestDefaults

    def with_step_cache(self, cache: StepCache | None) -> Sources:
        """The same, with another step cache for requests that say nothing."""
        return replace(self, defaults=replace(self.defaults, step_cache=cache))

    @property
    def nbytes(self) -> dict[str, int]:
        """Component -> memory that its weights take."""
        return {name: checked.nbytes(self.dtypes[name]) for name, checked in self.plans.items()}

    @property
    def limits(self) -> Limits:
        """What the checkpoint can do at most."""
        return Limits.of(
            axes_lens=self.specs.transformer.axes_lens,
            max_positions=self.specs.text_encoder.max_positions,
            latent_channels=self.specs.transformer.in_channels,
            caption_dim=self.specs.transformer.caption_dim,
        )


def find_sources(
    config: PipelineConfig, weight_paths: Sequence[Path], unprefixed_component: str, device: Device, default_steps: int
) -> Sources:
    """Find and check everything that a pipeline loads, reading configurations and headers only.

    Args:
        config: MAX's configuration, one model entry a component.
        weight_paths: Files that take the place of the checkpoint's own; see `route_weight_files`.
        unprefixed_component: Takes the files that stand in no component's folder.
        device: Where the components run.
        default_steps: Denoising steps of a checkpoint that is not distilled.

    Raises:
        ConfigError: If a configuration is not one that the graphs compute.
        CheckpointError: With everything that is wrong with the files of all components.
        ValueError: If the device lacks a library.
    """
    check_cublas(device)
    models = config.models
    configs = {name: models[name].huggingface_config.to_dict() for name in (*COMPONENTS, "scheduler")}
    specs = model_specs(**configs)
    files = _weight_files({name: models[name] for name in COMPONENTS}, weight_paths, unprefixed_component)
    sample_size = configs["vae"].get("sample_size")
    return Sources(
        specs=specs,
        configs=configs,
        dtypes={name: model_dtype(models[name].quantization_encoding or "auto", device) for name in COMPONENTS},
        files=files,
        plans=_plans(specs, files),
        defaults=RequestDefaults.of(
            shift=specs.schedule.shift,
            sample_size=sample_size if isinstance(sample_size, int) else 1024,
            steps=default_steps,
            named=models.metadata.get("_generation_defaults"),
            step_cache=configured(config.runtime.denoising_cache),
        ),
    )


def _weight_files(
    models: Mapping[str, MAXModelConfig], weight_paths: Sequence[Path], unprefixed_component: str
) -> dict[str, list[Path]]:
    named = {name: model.resolved_weight_paths() for name, model in models.items() if model.weight_path}
    # MAX writes a pipeline-wide --weight-path into every component; only the folder tells whose it is.
    if len(named) == len(models) and len({tuple(paths) for paths in named.values()}) == 1:
        named = route_weight_files(next(iter(named.values())), COMPONENTS, unprefixed_component)
    named |= route_weight_files(weight_paths, COMPONENTS, unprefixed_component)
    return {name: named[name] if name in named else _own_files(name, model) for name, model in models.items()}


def _own_files(component: str, model: MAXModelConfig) -> list[Path]:
    if model.subfolder is None:  # a folder that holds this component alone
        return find_component_files(Path(model.model_path), component, flat=True)
    return find_component_files(resolve_model(model.model_path), component)


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
        try:
            plans[component] = plan(expected, scan(files[component]))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    return plans
