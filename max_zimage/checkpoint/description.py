"""What the JSON files of a checkpoint say, read in one way for Python, the command line, the server and `max serve`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from max.pipelines.lib.config import MAXModelConfig, PipelineConfig

from max_zimage.checkpoint.config import ConfigError, ModelSpecs, model_specs, sample_size
from max_zimage.checkpoint.config_reader import CONFIG_FILES
from max_zimage.checkpoint.defaults import request_defaults
from max_zimage.checkpoint.locate import read_config, resolve_model
from max_zimage.checkpoint.model_index import GENERATION_DEFAULTS
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.sampling.step_cache import configured


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the files of a checkpoint say.

    Attributes:
        configs: Component -> its configuration as the file has it.
        specs: Shapes of all components, and the schedule.
        limits: What can be drawn at most.
        defaults: What a request gets that says nothing.
    """

    configs: Mapping[str, dict[str, object]]
    specs: ModelSpecs
    limits: Limits
    defaults: RequestDefaults


def describe(config: PipelineConfig, default_steps: int, *, without: Collection[str] = ()) -> Description:
    """Read and check the configurations of all components and the checkpoint's defaults.

    Args:
        config: MAX's configuration, one model entry a component.
        default_steps: Denoising steps of a checkpoint that is not distilled.
        without: Components whose files are left alone; the text encoder may be one.

    Raises:
        CheckpointError: If a file is absent or cannot be read.
        ConfigError: If a configuration is not one that the graphs compute, or a default none that can be drawn.
    """
    models = config.models
    folders = {name: _folder(models[name]) for name in CONFIG_FILES}
    configs = {name: read_config(folder, name, flat=True) for name, folder in folders.items() if name not in without}
    try:
        specs = model_specs(**configs)
        limits = Limits.of(
            axes_lens=specs.transformer.axes_lens,
            max_positions=specs.text_encoder.max_positions,
            latent_channels=specs.transformer.in_channels,
            caption_dim=specs.transformer.caption_dim,
            num_layers=specs.transformer.num_layers,
            text_layers=specs.text_encoder.num_layers,
        )
        defaults = request_defaults(
            limits=limits,
            schedule=specs.schedule,
            sample_size=sample_size(configs["vae"]),
            steps=default_steps,
            named=models.metadata.get(GENERATION_DEFAULTS),
            step_cache=configured(config.runtime.denoising_cache),
        )
    except ConfigError as error:
        raise error.located(folders, folders["scheduler"].parent) from error
    return Description(configs=configs, specs=specs, limits=limits, defaults=defaults)


def _folder(model: MAXModelConfig) -> Path:
    if model.subfolder is None:  # a folder that holds this component alone
        return Path(model.model_path)
    return resolve_model(model.model_path, model.huggingface_model_revision) / model.subfolder
