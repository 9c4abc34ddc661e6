"""What functions in other files need of the pipeline whose methods they are."""

from __future__ import annotations

from typing import Protocol

from max.driver import Device
from max.pipelines.diffusion.config import DenoisingCacheConfig

from max_zimage.compile.compiler import CompiledGraph
from max_zimage.components import ZImageTextEncoderModel, ZImageTransformerModel, ZImageVaeModel
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.sampling.step_cache import StepCache


class Parts(Protocol):
    """The components of a pipeline, and what was found of its checkpoint.

    Attributes:
        text_encoder: Encodes captions.
        transformer: Runs the steps.
        vae: Decodes and encodes.
        sources: Limits and defaults.
        device: Where they run.
        default_residual_threshold: First-block caching's, where MAX's flags name none.
    """

    text_encoder: ZImageTextEncoderModel
    transformer: ZImageTransformerModel
    vae: ZImageVaeModel
    sources: CheckpointManifest
    device: Device
    cache_config: DenoisingCacheConfig
    default_residual_threshold: float
    _pack: CompiledGraph

    @property
    def configured_cache(self) -> StepCache | None:
        """What MAX's flags ask for."""
