"""Checks of a context that MAX hands over, or that a caller filled by hand.

Those of the project's own tokenizer are right already; of others nothing is known.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from max.pipelines.context import PixelContext, TokenBuffer

from max_zimage.errors import RequestError
from max_zimage.images.read import starting_image
from max_zimage.pipeline.context import ZImageContext
from max_zimage.request import checks
from max_zimage.request.checks import Problems
from max_zimage.request.fields import ROWS
from max_zimage.request.limits import Limits
from max_zimage.request.start_image import check_size

_LEAST = {
    "height": 16,
    "width": 16,
    "num_images_per_prompt": 1,
    "guidance_scale": 0.0,
    "cfg_normalization": 0.0,
    "cfg_truncation": 1.0,
}
"""Fields that are judged as those of any request, and what stands in for one that does not do."""


def check_context(context: PixelContext, limits: Limits, vocab_size: int) -> None:
    """Refuse a context that is not whole.

    Args:
        context: Tokens, schedule, noise or the seed of it, and what else MAX's tokenizers put there.
        limits: What the checkpoint can do at most.
        vocab_size: Token ids of the text encoder.

    Raises:
        RequestError: With everything that is wrong.
    """
    check = (problems := Problems()).check
    values = {
        name: check(least, ROWS[name].kind.check, name, getattr(context, name), limits)
        for name, least in _LEAST.items()
    }
    height, width, copies = (int(values[name]) for name in ("height", "width", "num_images_per_prompt"))
    check(None, _check_levels, context, limits.max_steps)
    for name in ("tokens", "negative_tokens"):
        check(None, _check_tokens, name, getattr(context, name), vocab_size, limits.max_tokens)
    problems.raise_if_any()
    shape = (copies, limits.latent_channels, height // 8, width // 8)
    meaning = f"[num_images_per_prompt, channels, height / 8, width / 8] = {list(shape)}"
    if np.size(context.latents) or context.seed is None:
        checks.array("latents", context.latents, shape, meaning)
    if context.input_image is not None:
        image = starting_image("input_image", context.input_image, (limits.max_height, limits.max_width))
        check_size(image, None, height, width, None)
    if isinstance(context, ZImageContext) and context.input_mask is not None:
        _check_mask(context, context.input_mask, height, width)


def _check_mask(context: ZImageContext, mask: npt.NDArray[np.uint8], height: int, width: int) -> None:
    if not context.request:
        message = "{field} goes with the request that a context was made of, and this one was filled by hand"
        raise RequestError.of("input_mask", message)
    if mask.dtype != np.uint8 or mask.shape != (height, width):
        message = "{field} must be uint8 [height, width] = {shape}, got {given}"
        raise RequestError.of("input_mask", message, shape=[height, width], given=f"{mask.dtype} {list(mask.shape)}")


def _check_levels(context: PixelContext, most: int) -> None:
    """Sigmas fall to 0, and there is a timestep for each step."""
    sigmas = np.asarray(context.sigmas, np.float32)
    if sigmas.ndim != 1 or len(sigmas) < 2 or sigmas[-1] != 0:
        message = "{field} must be a noise level for every step and then 0, got {given}"
        raise RequestError.of("sigmas", message, given=_shown(sigmas))
    checks.sigmas("sigmas", sigmas[:-1], most)
    if np.shape(context.timesteps) != (len(sigmas) - 1,):
        message = "{field} must be one for every step, {steps}, got {given}"
        raise RequestError.of("timesteps", message, steps=len(sigmas) - 1, given=_shown(context.timesteps))


def _check_tokens(name: str, tokens: TokenBuffer | None, vocab_size: int, most: int) -> None:
    if tokens is None:
        return
    ids = np.asarray(tokens.array)
    if ids.min() < 0 or ids.max() >= vocab_size:
        message = "{field} must be ids from 0 to {most}, got {low} to {high}"
        raise RequestError.of(name, message, most=vocab_size - 1, low=ids.min(), high=ids.max())
    checks.check_token_count(len(ids), most, name, most, name)


def _shown(values: npt.ArrayLike) -> str:
    array = np.asarray(values)
    return f"{array.dtype} {list(array.shape)}" if array.size > 8 else str(array.tolist())
