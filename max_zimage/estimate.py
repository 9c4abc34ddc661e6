"""Memory that pictures take beside the weights, estimated from shapes."""

from __future__ import annotations

from max_zimage.checkpoint import ModelDtype
from max_zimage.config import ModelSpecs
from max_zimage.graphs.text_encoder import TextEncoderSpec
from max_zimage.graphs.transformer import TransformerSpec
from max_zimage.graphs.vae import VaeSpec
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
    tokens = padded(height * width // PIXELS_PER_TOKEN**2) + _CAPTION
    step = step_bytes(specs.transformer, items=pictures * (2 if guided else 1), tokens=tokens, dtype=dtype)
    return max(step, decode_bytes(specs.vae, pictures=pictures, height=height, width=width, dtype=dtype))


def step_bytes(spec: TransformerSpec, *, items: int, tokens: int, dtype: ModelDtype) -> int:
    """The same of one denoising step over [items, tokens, dim]."""
    size = _BYTES[dtype]
    # A block holds its input, the normed input, and either both halves of SwiGLU with their product or queries, keys
    # and values with their float32 copies, whichever is more.
    feed_forward = 3 * spec.ffn_dim * size
    attention = 3 * spec.dim * size + 4 * spec.dim * _FLOAT32
    return items * tokens * (2 * spec.dim * size + max(feed_forward, attention))


def text_bytes(spec: TextEncoderSpec, *, prompts: int, tokens: int, dtype: ModelDtype) -> int:
    """The same of the text encoder over [prompts, tokens]; its blocks are those of the transformer with other names."""
    size, heads = _BYTES[dtype], (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    attention = heads * (size + _FLOAT32)
    return prompts * tokens * (2 * spec.hidden_size * size + max(3 * spec.intermediate_size * size, attention))


def decode_bytes(spec: VaeSpec, *, pictures: int, height: int, width: int, dtype: ModelDtype) -> int:
    """The same of the decoder, which takes large pictures a few at a time."""
    size, widths = _BYTES[dtype], spec.block_out_channels
    # The decoder's last blocks work at full size: the input, its float32 normalization and the output of a convolution.
    pixel = widths[0] * (2 * size + _FLOAT32) + widths[min(1, len(widths) - 1)] * size
    return pictures_at_once(pictures, height, width) * height * width * pixel


def pictures_at_once(pictures: int, height: int, width: int) -> int:
    """How many pictures are decoded in one call: the decoder works at full size, and its memory adds up."""
    return max(1, min(pictures, _DECODED_PIXELS // (height * width)))
