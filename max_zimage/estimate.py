"""Memory that pictures take beside the weights, estimated from shapes."""

from __future__ import annotations

from max_zimage.checkpoint import ModelDtype
from max_zimage.config import ModelSpecs
from max_zimage.positions import PIXELS_PER_TOKEN, padded

_BYTES = {"float32": 4, "bfloat16": 2}
_FLOAT32 = 4
_DECODED_PIXELS = 2048 * 2048
_CAPTION = 128  # tokens of a caption; long prompts have a few hundred


def activation_bytes(
    specs: ModelSpecs, *, height: int, width: int, guided: bool, dtype: ModelDtype, pictures: int = 1
) -> int:
    """Estimate the largest memory that computing pictures takes at a time.

    Args:
        specs: Shapes of the model.
        height: Pixels.
        width: Pixels.
        guided: Whether the negative branch runs too.
        dtype: Of weights and computation.
        pictures: That share a batch.

    Returns:
        Bytes; right within a factor of two or so, since the compiler decides what is fused and what is kept. Where the
        decoder decides, the process grew by 1.1 to 1.2 times as much (float32 on a CPU, 512x512 and 1024x1024).
    """
    transformer, size = specs.transformer, _BYTES[dtype]
    tokens = padded(height * width // PIXELS_PER_TOKEN**2) + _CAPTION
    # A block holds its input, the normed input, and either both halves of SwiGLU with their product or queries, keys
    # and values with their float32 copies, whichever is more.
    feed_forward = 3 * transformer.ffn_dim * size
    attention = 3 * transformer.dim * size + 4 * transformer.dim * _FLOAT32
    step = pictures * (2 if guided else 1) * tokens * (2 * transformer.dim * size + max(feed_forward, attention))
    # The decoder's last blocks work at full size: the input, its float32 normalization and the output of a convolution.
    widths = specs.vae.block_out_channels
    decode = (
        pictures_at_once(pictures, height, width)
        * height
        * width
        * (widths[0] * (2 * size + _FLOAT32) + widths[min(1, len(widths) - 1)] * size)
    )
    return max(step, decode)


def pictures_at_once(pictures: int, height: int, width: int) -> int:
    """How many pictures are decoded in one call: the decoder works at full size, and its memory adds up."""
    return max(1, min(pictures, _DECODED_PIXELS // (height * width)))
