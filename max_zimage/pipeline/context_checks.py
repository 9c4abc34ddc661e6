"""Checks of a context that MAX hands over, or that a caller filled by hand.

Those of the project's own tokenizer are right already; of others nothing is known.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from max.pipelines.context import PixelContext, TokenBuffer

from max_zimage.errors import RequestError
from max_zimage.images.read import starting_image
from max_zimage.request import checks
from max_zimage.request.checks import Problems
from max_zimage.request.limits import Limits
from max_zimage.request.start_image import check_size


def check_context(context: PixelContext, limits: Limits, vocab_size: int) -> None:
    """Refuse a context that is not whole.

    Args:
        context: Tokens, schedule, noise and what else MAX's tokenizers put there.
        limits: What the checkpoint can do at most.
        vocab_size: Token ids of the text encoder.

    Raises:
        RequestError: With everything that is wrong.
    """
    check = (problems := Problems()).check
    height = check(16, checks.side, "height", context.height, limits.max_height)
    width = check(16, checks.side, "width", context.width, limits.max_width)
    copies = check(1, checks.count, "num_images_per_prompt", context.num_images_per_prompt, limits.max_images)
    check(0.0, checks.guidance, context.guidance_scale)
    check(0.0, checks.normalization, context.cfg_normalization)
    check(1.0, checks.number, "cfg_truncation", context.cfg_truncation)
    check(None, _check_levels, context, limits.max_steps)
    for name in ("tokens", "negative_tokens"):
        check(None, _check_tokens, name, getattr(context, name), vocab_size, limits.max_tokens)
    problems.raise_if_any()
    shape = (copies, limits.latent_channels, height // 8, width // 8)
    meaning = f"[num_images_per_prompt, channels, height / 8, width / 8] = {list(shape)}"
    checks.array("latents", context.latents, shape, meaning)
    if context.input_image is not None:
        image = starting_image("input_image", context.input_image, (limits.max_height, limits.max_width))
        check_size(image, height, width, None)


def _check_levels(context: PixelContext, most: int) -> None:
    """Sigmas fall to 0, and there is a timestep for each step."""
    sigmas = np.asarray(context.sigmas, np.float32)
    if sigmas.ndim != 1 or len(sigmas) < 2 or sigmas[-1] != 0:
        raise RequestError(f"sigmas must be a noise level for every step and then 0, got {_shown(sigmas)}")
    checks.sigmas("sigmas", sigmas[:-1], most)
    if np.shape(context.timesteps) != (len(sigmas) - 1,):
        raise RequestError(f"timesteps must be one for every step, {len(sigmas) - 1}, got {_shown(context.timesteps)}")


def _check_tokens(name: str, tokens: TokenBuffer | None, vocab_size: int, most: int) -> None:
    if tokens is None:
        return
    ids = np.asarray(tokens.array)
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise RequestError(f"{name} must be ids from 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}")
    checks.check_token_count(len(ids), most, name, most)


def _shown(values: npt.ArrayLike) -> str:
    array = np.asarray(values)
    return f"{array.dtype} {list(array.shape)}" if array.size > 8 else str(array.tolist())
