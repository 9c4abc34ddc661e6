"""What a checkpoint can do at most, and what it does where a request says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from max_zimage.positions import max_caption_tokens, max_image_side
from max_zimage.step_cache import StepCache

DEFAULT_MAX_SEQUENCE_LENGTH = 512
"""Tokens of a prompt, chat template included, unless the request raises it; the reference's value."""

_DISTILLED_SHIFT = 3.0


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
    """

    max_height: int
    max_width: int
    max_tokens: int
    latent_channels: int
    caption_dim: int
    max_steps: int = 1000
    max_images: int = 64

    @property
    def default_tokens(self) -> int:
        """Tokens of a prompt where the request does not raise them."""
        return min(DEFAULT_MAX_SEQUENCE_LENGTH, self.max_tokens)

    @classmethod
    def of(cls, *, axes_lens: Sequence[int], max_positions: int, latent_channels: int, caption_dim: int) -> Limits:
        """Derive the limits of a checkpoint.

        Args:
            axes_lens: Positions the transformer has on each axis.
            max_positions: Positions the text encoder has.
            latent_channels: Channels of a latent.
            caption_dim: Width of a caption feature.

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
    """

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    step_cache: StepCache | None = None

    @classmethod
    def of(
        cls,
        *,
        shift: float,
        sample_size: int,
        steps: int,
        named: Mapping[str, int | float] | None = None,
        step_cache: StepCache | None = None,
    ) -> RequestDefaults:
        """Find the defaults of a checkpoint.

        Args:
            shift: The scheduler's shift. The distilled checkpoints have 3: 8 steps without guidance, as their card
                says. Others get `steps` and the reference's guidance 5.
            sample_size: The side the autoencoder was made for, in pixels.
            steps: Denoising steps of a checkpoint that is not distilled.
            named: What the checkpoint's `model_index.json` names under `_generation_defaults`; it comes first.
            step_cache: What the pipeline is configured with; no checkpoint names one.

        Returns:
            The defaults.

        Raises:
            ValueError: If a named default is unknown or no number.
        """
        steps, guidance = (8, 0.0) if shift == _DISTILLED_SHIFT else (steps, 5.0)
        values = {"height": sample_size, "width": sample_size, "num_inference_steps": steps, "guidance_scale": guidance}
        known = list(values)
        for name, value in (named or {}).items():
            if name not in known or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(
                    f"_generation_defaults of model_index.json may hold numbers named {', '.join(known)}, "
                    f"got {name} = {value!r}"
                )
            values[name] = value
        return cls(
            height=int(values["height"]),
            width=int(values["width"]),
            num_inference_steps=int(values["num_inference_steps"]),
            guidance_scale=float(values["guidance_scale"]),
            step_cache=step_cache,
        )
