"""The entry for `--custom-architectures max_zimage`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from max.graph.weights import WeightsFormat
from max.pipelines.diffusion.config import GENERIC_TAYLORSEER_DEFAULTS
from max.pipelines.lib import SupportedArchitecture
from max.pipelines.lib.config import MAXModelConfig, PipelineConfig
from max.pipelines.lib.interfaces import ArchConfig
from max.pipelines.modeling.config_enums import SupportedEncoding
from max.pipelines.modeling.types import PipelineTask
from transformers import AutoConfig

from max_zimage.checkpoint.model_index import PIPELINE_CLASSES
from max_zimage.device.devices import device_name
from max_zimage.device.mesh import mesh_names
from max_zimage.pipeline.context import ZImageContext
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.request.limits import DEFAULT_MAX_SEQUENCE_LENGTH
from max_zimage.serving.context_tokenizer import ZImageTokenizer
from max_zimage.serving.worker.max_hooks import PixelGenerationPipeline


@dataclass(kw_only=True)
class ZImageArchConfig(ArchConfig):
    """What MAX's registry asks of an architecture.

    Attributes:
        pipeline_config: MAX's configuration; a diffusion checkpoint has one model entry a component and no main one.
    """

    DEFAULT_ENCODING: ClassVar[SupportedEncoding] = "bfloat16"
    SUPPORTED_ENCODINGS: ClassVar[set[SupportedEncoding]] = {"bfloat16", "float32"}

    pipeline_config: PipelineConfig

    def get_max_seq_len(self) -> int:
        """Return the tokens a prompt may have, chat template included."""
        return DEFAULT_MAX_SEQUENCE_LENGTH

    @classmethod
    def calculate_max_seq_len(cls, huggingface_config: AutoConfig, model_config: MAXModelConfig) -> int:
        """Return the same for every checkpoint: MAX passes the first component's configuration, whichever it is."""
        return DEFAULT_MAX_SEQUENCE_LENGTH

    @classmethod
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: MAXModelConfig | None = None,
        *,
        max_seq_len: int = DEFAULT_MAX_SEQUENCE_LENGTH,
    ) -> ZImageArchConfig:
        """Check that the pipeline runs on one device, or the transformer on several GPUs.

        Args:
            pipeline_config: MAX's configuration.
            model_config: The component whose devices count; the transformer's by default.
            max_seq_len: Must be what `calculate_max_seq_len` returned.

        Returns:
            The configuration.

        Raises:
            ValueError: If devices cannot compute together, or another length is asked for.
        """
        component = model_config or pipeline_config.models["transformer"]
        if len(component.device_specs) != 1:
            mesh_names([*map(device_name, component.device_specs)], "--devices")
        if max_seq_len != DEFAULT_MAX_SEQUENCE_LENGTH:
            raise ValueError(f"prompts have up to {DEFAULT_MAX_SEQUENCE_LENGTH} tokens when served, got {max_seq_len}")
        return cls(pipeline_config=pipeline_config)


ARCHITECTURE = SupportedArchitecture(
    name="ZImagePipeline",
    task=PipelineTask.PIXEL_GENERATION,
    example_repo_ids=["Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image"],
    default_encoding=ZImageArchConfig.DEFAULT_ENCODING,
    supported_encodings=ZImageArchConfig.SUPPORTED_ENCODINGS,
    pipeline_model=ZImagePipeline,  # type: ignore[arg-type]  # MAX's annotation leaves diffusion pipelines out
    tokenizer=ZImageTokenizer,
    context_type=ZImageContext,
    pipeline_cls=PixelGenerationPipeline,
    config=ZImageArchConfig,
    default_weights_format=WeightsFormat.safetensors,
    denoising_cache_defaults=GENERIC_TAYLORSEER_DEFAULTS,
)

ARCHITECTURES = [replace(ARCHITECTURE, name=name) for name in PIPELINE_CLASSES]
"""One for every name that a checkpoint with these parts may have in its `model_index.json`."""
