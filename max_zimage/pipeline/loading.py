"""Finds and checks a checkpoint, before anything of it is loaded.

A checked model is read once: the pipeline and its components take over what was found.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from max.driver import Device, load_devices
from max.engine import InferenceSession
from max.graph.weights import SafetensorWeights
from max.pipelines.diffusion.config import DenoisingCacheConfig
from max.pipelines.lib.config import PipelineConfig
from max.pipelines.modeling.base.component_model import ComponentModel

from max_zimage import embedded
from max_zimage.checkpoint.locate import resolve_model
from max_zimage.components import ZImageComponent
from max_zimage.device.devices import device_spec
from max_zimage.device.dtypes import model_dtype
from max_zimage.device.memory import available_memory, check_device_memory, check_memory
from max_zimage.host.processes import check_process
from max_zimage.pipeline.manifest import CheckpointManifest, find_sources
from max_zimage.pipeline.max_config import pipeline_config
from max_zimage.request.checks import step_cache as checked_step_cache
from max_zimage.sampling.step_cache import StepCache, flags_of
from max_zimage.text.tokenizer import PromptTokenizer

PathName = str | os.PathLike[str]

UNPREFIXED_COMPONENT = "transformer"
"""Takes weight files that stand in no component's folder."""
DEFAULT_STEPS = 50
"""Of a checkpoint that is not distilled."""


@dataclass(frozen=True)
class CheckedModel:
    """A checkpoint that is found and checked, but not loaded.

    Attributes:
        directory: Where it lies.
        config: MAX's configuration of it.
        devices: The first one will run all components.
        weight_paths: Files in place of the checkpoint's own.
        sources: Shapes, files, defaults and limits.
        tokenizer: Its tokenizer.
    """

    directory: Path
    config: PipelineConfig
    devices: list[Device]
    weight_paths: list[Path]
    sources: CheckpointManifest
    tokenizer: PromptTokenizer


def check_model(
    model: PathName | None,
    *,
    device: str,
    dtype: str,
    weight_path: PathName | Sequence[PathName],
    step_cache: StepCache | str | None,
    templates_dir: PathName | None = None,
) -> CheckedModel:
    """Find and check all that loading would load, reading configurations, headers and the tokenizer only.

    Arguments and errors are those of `ZImagePipeline.from_pretrained`, memory apart.
    """
    spec = device_spec(device)
    devices = load_devices([spec])
    model_dtype(dtype, devices[0])
    cache = checked_step_cache(step_cache, None)
    given = [weight_path] if isinstance(weight_path, (str, os.PathLike)) else weight_path
    directory = resolve_model(model if isinstance(model, str) else Path(model or embedded.PATH))
    config = pipeline_config(directory, spec, None if dtype == "auto" else dtype, flags_of(cache))
    paths = [Path(path) for path in given]
    sources = find_sources(config, paths, UNPREFIXED_COMPONENT, devices[0], DEFAULT_STEPS).with_step_cache(cache)
    if templates_dir is not None:
        sources = sources.with_templates(Path(templates_dir))
    tokenizer = PromptTokenizer(
        directory / "tokenizer",
        embeddings=sources.specs.text_encoder.vocab_size,
        positions=sources.limits.max_tokens,
    )
    return CheckedModel(directory, config, devices, paths, sources, tokenizer)


def check_fits(sources: CheckpointManifest, device: Device) -> None:
    """Compare the weights with the memory there is.

    Raises:
        NotEnoughMemoryError: If they do not fit.
    """
    # Weights pass through host memory whatever the device is, on the way to a GPU one component at a time.
    sizes = sources.nbytes.values()
    check_memory(sum(sizes) if device.is_host else max(sizes), available_memory())
    if not device.is_host:
        check_device_memory(sum(sizes), device)


def new_session(devices: list[Device]) -> InferenceSession:
    """Where graphs run.

    Raises:
        RuntimeError: If MAX cannot be used in this process because it is a fork.
    """
    check_process()
    return InferenceSession(devices=devices)


def load_components(
    make: Mapping[str, type[ZImageComponent]],
    sources: CheckpointManifest,
    devices: list[Device],
    session: InferenceSession,
    cache_config: DenoisingCacheConfig | None,
) -> dict[str, ComponentModel]:
    """Load the weights of all components, from what was found of them.

    Raises:
        NotEnoughMemoryError: If they do not fit; raised before anything is loaded.
    """
    check_fits(sources, devices[0])
    components: dict[str, ComponentModel] = {}
    sizes = sources.nbytes
    for name, component in make.items():
        # Only the files' names: MAX would open them once more, as safetensors whatever they are.
        unread: dict[str, Any] = {"tensors": frozenset(), "tensors_to_file_idx": {}, "_st_file_handles": {}}
        weights, plan = SafetensorWeights(sources.files[name], **unread), sources.plans[name]
        what = sources.configs[name], sources.dtypes[name], devices, weights
        components[name] = made = component(*what, session=session, cache_config=cache_config, plan=plan)
        made.nbytes_beside = sum(sizes.values()) - sizes[name]
    return components
