"""What graphs are made for where no weights are read: a model's shapes, and what its pictures are by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from max_zimage import embedded
from max_zimage.checkpoint.config import ModelSpecs, model_specs
from max_zimage.checkpoint.defaults import usual_guidance
from max_zimage.checkpoint.locate import CONFIG_FILES, read_config, resolve_model
from max_zimage.checkpoint.model_index import GENERATION_DEFAULTS, read_index
from max_zimage.cli.options import model_path
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.compile.entry import EVERY_COMPONENT, ComponentName
from max_zimage.diffusion_gemma.config_file import is_diffusion_gemma, read_file
from max_zimage.pipeline.configured import configured_guidance
from max_zimage.request.configuration.configuration import Configuration

PUBLISHED = "the published models"


def what_to_compile(model: str | None) -> tuple[ModelSpecs, Sequence[ComponentName]]:
    """Shapes of a checkpoint and the components that it has; a DiffusionGemma has but one, and Z-Image the others.

    Raises:
        ValueError: See `specs_of`.
    """
    if model is not None and is_diffusion_gemma(Path(model)):
        return replace(FULL_MODEL, diffusion_gemma=read_file(Path(model)).spec), ("diffusion_gemma",)
    pictures = [each for each in EVERY_COMPONENT if each != "diffusion_gemma"]
    return specs_of(model), EVERY_COMPONENT if model is None else pictures


def specs_of(model: str | None) -> ModelSpecs:
    """Shapes of a checkpoint, from its configuration alone; those of the published models if none is named.

    Raises:
        ValueError: If there is no such model, or its configuration is not one that the graphs compute.
    """
    if model is None:
        return FULL_MODEL
    directory = _folder(model)
    return model_specs(**{name: read_config(directory, name) for name in CONFIG_FILES})


def is_guided(model: str | None, specs: ModelSpecs, configuration: Configuration) -> bool:
    """Whether a model's pictures are guided by default, as a pipeline of the same configuration finds it.

    Args:
        model: None for the published models, of which Z-Image-Turbo stands for all.
        specs: Its shapes and schedule, from `specs_of`.
        configuration: What is configured.

    Raises:
        CheckpointError: If the model's index cannot be read.
    """
    configured = configured_guidance(configuration)
    if configured is not None:
        return configured > 0
    if model is None or is_diffusion_gemma(Path(model)):
        return usual_guidance(specs.schedule) > 0
    return usual_guidance(specs.schedule, read_index(_folder(model)).get(GENERATION_DEFAULTS)) > 0


def _folder(model: str) -> Path:
    named = model_path(model)
    return resolve_model(embedded.PATH if named is None else named)
