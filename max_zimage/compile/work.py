"""The work of every graph, counted from shapes: floating-point operations, and bytes that have to move.

Operations are the multiplications and additions of matrix products, convolutions and attention. Left out is what is
done element by element (norms, softmax, RoPE, activations, modulation, guidance, Euler): far below one percent of the
transformer's and the text encoder's. Attention counts every pair of positions, those that a mask hides included.

Bytes are those of weights, read once a call, and of what each product, convolution or attention reads and writes, once.
No score matrix is counted, since none is written, and no pass of its own for what is done element by element, as if all
of it were fused. What really moves is more, by how much depends on the compiler and on the caches.
"""

from __future__ import annotations

from dataclasses import dataclass

from max_zimage.graphs.dims import FirstBlock
from max_zimage.graphs.model.blocks import BlockShape
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.model.vae import RGB, VaeSpec

_FLOAT32 = 4
_SINUSOIDS, _TIMESTEP_HIDDEN = 256, 1024  # graphs.model.conditioning: not part of any configuration


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one call.

    Attributes:
        flops: Multiplications and additions.
        nbytes: Read and written.
    """

    flops: int = 0
    nbytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(flops=self.flops + other.flops, nbytes=self.nbytes + other.nbytes)

    def __mul__(self, times: int) -> Work:
        return Work(flops=self.flops * times, nbytes=self.nbytes * times)


def linear(tokens: int, inner: int, outer: int, size: int) -> Work:
    """A matrix product [tokens, inner] x [inner, outer] of numbers of `size` bytes."""
    return Work(flops=2 * tokens * inner * outer, nbytes=size * (tokens * inner + inner * outer + tokens * outer))


def attention(
    items: int, length: int, heads: int, head_dim: int, size: int, key_value_heads: int | None = None
) -> Work:
    """Both products of attention over [items, length, heads, head_dim]; keys and values may have fewer heads."""
    shared = heads if key_value_heads is None else key_value_heads
    return Work(
        flops=4 * items * length**2 * heads * head_dim,
        nbytes=size * items * length * head_dim * (2 * heads + 2 * shared),
    )


def convolution(
    pixels: int, inner: int, outer: int, size: int, *, kernel: int = 3, weight_size: int | None = None
) -> Work:
    """A convolution that leaves `pixels` as many as they are; weights may have another size than pictures."""
    weights = kernel**2 * inner * outer
    return Work(
        flops=2 * pixels * weights,
        nbytes=size * pixels * (inner + outer) + (size if weight_size is None else weight_size) * weights,
    )


def block_products(shape: BlockShape, tokens: int, size: int) -> Work:
    """The matrix products of one transformer block with its weights."""
    products = ((shape.dim, 3 * shape.dim), (shape.dim, shape.dim), (shape.dim, 2 * shape.ffn_dim))
    sums = [linear(tokens, inner, outer, size) for inner, outer in (*products, (shape.ffn_dim, shape.dim))]
    return sum(sums, start=Work())


def block(shape: BlockShape, items: int, length: int, size: int) -> Work:
    """One transformer block over [items, length, dim]."""
    mixed = attention(items, length, shape.num_heads, shape.head_dim, size)
    return block_products(shape, items * length, size) + mixed


def denoise(
    spec: TransformerSpec,
    *,
    items: int,
    image_tokens: int,
    image_padded: int,
    tokens: int,
    size: int,
    is_paired: bool = False,
) -> Work:
    """One denoising step, `graphs.step.compose.denoise_step`.

    Args:
        spec: The transformer's shape.
        items: Rows of its batch.
        image_tokens: Tokens of a picture.
        image_padded: The same rounded up to a multiple of 32.
        tokens: `image_padded` and the padded caption.
        size: Bytes of a number in the model's dtype.
        is_paired: Whether it is `graphs.step.paired`, where two items are one picture but for attention.
    """
    pictures, length = (items // 2, 2 * tokens - image_padded) if is_paired else (items, tokens)
    mixed = attention(items, tokens, spec.num_heads, spec.head_dim, size)
    return (
        linear(pictures * image_tokens, spec.patch_dim, spec.dim, size)
        + block(spec, pictures, image_padded, size) * spec.num_refiner_layers
        + (block_products(spec, pictures * length, size) + mixed) * spec.num_layers
        + linear(pictures * image_tokens, spec.dim, spec.patch_dim, size)
    )


def first_block(
    spec: TransformerSpec,
    first: FirstBlock,
    *,
    items: int,
    image_tokens: int,
    image_padded: int,
    tokens: int,
    size: int,
) -> Work:
    """A step that `graphs.step.first_block.FirstBlockStep` leaves out; the first block is asked, and projected.

    Args:
        spec: The transformer's shape.
        first: The block that decides.
        items: See `denoise`, also for what follows.
        image_tokens: See there.
        image_padded: See there.
        tokens: See there.
        size: See there.
    """
    refiner = block(spec, items, image_padded, size)
    asked = (
        refiner if first == "noise_refiner" else refiner * spec.num_refiner_layers + block(spec, items, tokens, size)
    )
    ends = linear(items * image_tokens, spec.patch_dim, spec.dim, size) * 2
    return asked + ends


def conditioning(spec: TransformerSpec, *, prompts: int, length: int, size: int) -> Work:
    """`graphs.model.conditioning.CaptionConditioning`, over [prompts, length, caption_dim]."""
    embedded = linear(prompts * length, spec.caption_dim, spec.dim, size)
    return embedded + block(spec, prompts, length, size) * spec.num_refiner_layers


def modulation(spec: TransformerSpec, *, steps: int, size: int) -> Work:
    """The table of a schedule, `graphs.model.conditioning.ModulationTable`."""
    return (
        linear(steps, _SINUSOIDS, _TIMESTEP_HIDDEN, size)
        + linear(steps, _TIMESTEP_HIDDEN, spec.adaln_dim, size)
        + linear(steps, spec.adaln_dim, (4 * spec.num_blocks + 1) * spec.dim, size)
    )


def text_encoder(spec: TextEncoderSpec, *, layers: int, prompts: int, length: int, size: int) -> Work:
    """The text encoder's first layers over [prompts, length]; an embedding is looked up, not multiplied."""
    tokens, query, key = prompts * length, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    layer = (
        linear(tokens, spec.hidden_size, query + 2 * key, size)
        + attention(prompts, length, spec.num_heads, spec.head_dim, size, spec.num_kv_heads)
        + linear(tokens, query, spec.hidden_size, size)
        + linear(tokens, spec.hidden_size, 2 * spec.intermediate_size, size)
        + linear(tokens, spec.intermediate_size, spec.hidden_size, size)
    )
    return layer * layers + Work(nbytes=2 * tokens * spec.hidden_size * size)


def decode(spec: VaeSpec, *, pictures: int, rows: int, columns: int, size: int, picture_size: int) -> Work:
    """The decoder, `graphs.model.vae.DecodeLatents`.

    Args:
        spec: The autoencoder's shape.
        pictures: Decoded at once.
        rows: Of latents.
        columns: Of latents.
        size: Bytes of a number in the model's dtype.
        picture_size: Bytes of a number between the convolutions: on a CPU they are float32 whatever the dtype.
    """
    pixels = pictures * rows * columns

    def conv(inner: int, outer: int, kernel: int = 3) -> Work:
        return convolution(pixels, inner, outer, picture_size, kernel=kernel, weight_size=size)

    def resnet(inner: int, outer: int) -> Work:
        shortcut = Work() if inner == outer else conv(inner, outer, kernel=1)
        return conv(inner, outer) + conv(outer, outer) + shortcut

    deepest = spec.block_out_channels[-1]
    mixed = linear(pixels, deepest, deepest, size) * 4 + attention(pictures, rows * columns, 1, deepest, size)
    total, width = conv(spec.latent_channels, deepest) + resnet(deepest, deepest) * 2 + mixed, deepest
    for index, wider in enumerate(reversed(spec.block_out_channels)):
        total += resnet(width, wider) + resnet(wider, wider) * spec.layers_per_block
        width = wider
        if index < len(spec.block_out_channels) - 1:
            pixels *= 4
            total += conv(width, width)
    return total + conv(width, RGB)


def elementwise(count: int, passes: int) -> Work:
    """Float32 numbers that are only read and written, so many times each."""
    return Work(nbytes=_FLOAT32 * count * passes)
