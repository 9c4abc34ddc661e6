"""What a checkpoint can do at most, and what it does where a request says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from max_zimage.request.configured import with_configured
from max_zimage.request.loras import Lora, LoraFiles, LorasOfFolder
from max_zimage.request.templates import Templates
from max_zimage.sampling.names import DEFAULT_SAMPLER, DEFAULT_SHAPE
from max_zimage.sampling.positions import max_caption_tokens, max_image_side
from max_zimage.sampling.step_cache import StepCache

DEFAULT_MAX_SEQUENCE_LENGTH = 512
"""Tokens of a prompt, chat template included, unless the request raises it; the reference's value."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a checkpoint can do at most.

    Attributes:
        max_height: Pixels.
        max_width: Pixels.
        max_tokens: Tokens of a caption, chat template included.
        latent_channels: Channels of a latent.
        caption_dim: Width of a caption feature.
        max_steps: Denoising steps; keeps a mistyped number from filling the memory with a modulation table.
        max_images: Pictures of one request, which run as one batch.
        num_layers: Main layers of the transformer.
        max_positions: Tokens that the text encoder reads.
        text_layers: Its layers.
        has_final_norm: Whether its files hold the norm behind them.
        lora_files: Where adapters may come from.
        streams_blocks: Whether the transformer's blocks come one at a time.
        groups: Of devices on which the transformer runs; 0 where it runs on one.
    """

    max_height: int
    max_width: int
    max_tokens: int
    latent_channels: int
    caption_dim: int
    max_steps: int = 1000
    max_images: int = 64
    num_layers: int = 30
    max_positions: int = 40960
    text_layers: int = 36
    has_final_norm: bool = True
    lora_files: LoraFiles = field(default_factory=LoraFiles)
    streams_blocks: bool = False
    groups: int = 0

    @property
    def default_tokens(self) -> int:
        """Tokens of a prompt where the request does not raise them."""
        return min(DEFAULT_MAX_SEQUENCE_LENGTH, self.max_tokens)

    def with_lora_folder(self, folder: Path | None) -> Self:
        """The same for callers who may name the adapters of a folder, or none, and no other file."""
        return replace(self, lora_files=LorasOfFolder(folder))

    @classmethod
    def of(
        cls,
        *,
        axes_lens: Sequence[int],
        max_positions: int,
        latent_channels: int,
        caption_dim: int,
        num_layers: int = 30,
        text_layers: int = 36,
    ) -> Limits:
        """Derive the limits of a checkpoint.

        Args:
            axes_lens: Positions the transformer has on each axis.
            max_positions: Positions the text encoder has.
            latent_channels: Channels of a latent.
            caption_dim: Width of a caption feature.
            num_layers: Main layers of the transformer.
            text_layers: Layers of the text encoder.

        Returns:
            The limits.
        """
        height, width = max_image_side(axes_lens)
        tokens = min(max_caption_tokens(axes_lens), max_positions)
        return cls(
            max_height=height,
            max_width=width,
            max_tokens=tokens,
            latent_channels=latent_channels,
            caption_dim=caption_dim,
            num_layers=num_layers,
            max_positions=max_positions,
            text_layers=text_layers,
        )


@dataclass(frozen=True, kw_only=True)
class RequestDefaults:
    """What a checkpoint uses where a request says nothing.

    Attributes:
        height: Pixels.
        width: Pixels.
        num_inference_steps: Denoising steps.
        guidance_scale: Guidance scale, 0 for none.
        step_cache: Leaves out steps, or None for none.
        sampler: One of `max_zimage.sampling.names.SAMPLERS`.
        sigma_shape: One of `max_zimage.sampling.names.SIGMA_SHAPES`.
        templates: That requests may name.
        loras: Adapters.
        configured: Other fields -> what a configuration file says of them; see `max_zimage.request.configured`.
    """

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    step_cache: StepCache | None = None
    sampler: str = DEFAULT_SAMPLER
    sigma_shape: str = DEFAULT_SHAPE
    templates: Templates = field(default_factory=Templates)
    loras: tuple[Lora, ...] = ()
    configured: Mapping[str, Any] = field(default_factory=dict)

    def beneath(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a request, and under them what is configured."""
        return with_configured(arguments, self.configured) if self.configured else dict(arguments)
