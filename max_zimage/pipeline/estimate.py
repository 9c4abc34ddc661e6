"""Memory that pictures take beside the weights, estimated from shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from max.driver import Device

from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.device.dtypes import BYTES, ModelDtype
from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.device.plans import Rows
from max_zimage.graphs.model.text_encoder import TextEncoderSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.model.vae import VaeSpec
from max_zimage.host.sizes import sized
from max_zimage.images.tiles import WHOLE, Tiling, TilingKind
from max_zimage.sampling.positions import PIXELS_PER_TOKEN, padded
from max_zimage.sampling.step_cache import FirstBlockCache, StepCache

if TYPE_CHECKING:
    from max_zimage.pipeline.manifest import CheckpointManifest
    from max_zimage.request.request import GenerationRequest

_FLOAT32 = 4
_DECODED_PIXELS = 2048 * 2048
_LARGE = 4096
_CAPTION = 128  # tokens of a caption; long prompts have a few hundred


def activation_bytes(
    specs: ModelSpecs,
    *,
    height: int,
    width: int,
    branches: int,
    dtype: ModelDtype,
    pictures: int = 1,
    tiling: Tiling = WHOLE,
    on_host: bool = False,
) -> int:
    """Estimate the largest memory that computing pictures takes at a time.

    Args:
        specs: Shapes of the model.
        height: Pixels.
        width: Pixels.
        branches: Ways in which each picture is seen.
        dtype: Of weights and computation.
        pictures: That share a batch.
        tiling: How they are decoded.
        on_host: Whether this is the host's memory, where exact tiles keep what the layers make of the picture.

    Returns:
        Bytes; right within a factor of two or so, since the compiler decides what is fused and what is kept. Where the
        decoder decides, the process grew by 1.1 to 1.2 times as much (float32 on a CPU, 512x512 and 1024x1024).
    """
    tokens = padded(height * width // PIXELS_PER_TOKEN**2) + _CAPTION
    step = step_bytes(specs.transformer, items=pictures * branches, tokens=tokens, dtype=dtype)
    decoder = decode_bytes(specs.vae, pictures=pictures, height=height, width=width, dtype=dtype, tiling=tiling)
    kept = map_bytes(specs.vae, height, width, dtype, tiling) if on_host else 0
    return max(step, decoder + kept)


def check_picture(
    sources: CheckpointManifest,
    device: Device,
    *,
    height: int,
    width: int,
    branches: int,
    pictures: int,
    loaded: bool = True,
    again: int = 0,
    tiling: Tiling = WHOLE,
) -> None:
    """Refuse pictures that cannot be computed here, where the system would end the process.

    The estimate is rather too low than too high, and no margin is added: what is refused would not have fitted.

    Args:
        sources: Shapes and weights of the model.
        device: Where it runs.
        height: Pixels.
        width: Pixels.
        branches: Ways in which each picture is seen.
        pictures: That share a batch.
        loaded: Whether the weights are in memory already, and not among what is free.
        again: Bytes of weights that lie on an accelerator a second time, or for some requests alone.
        tiling: How they are decoded.

    Raises:
        NotEnoughMemoryError: With what is needed, what is there and what would fit.
    """
    # Of an accelerator the whole is compared: MAX takes a part for itself, and gives from it.
    available = available_memory() if device.is_host else int(device.stats["total_memory"])
    weights = 0 if loaded and device.is_host else sum(sources.nbytes.values()) + again

    def needed(side_y: int, side_x: int, count: int, tiling: Tiling = tiling) -> int:
        size: dict[str, Any] = {"height": side_y, "width": side_x, "branches": branches, "pictures": count}
        size |= {"dtype": sources.dtypes["transformer"], "tiling": tiling, "on_host": device.is_host}
        return weights + activation_bytes(sources.specs, **size)

    if not device.is_host:
        check_maps(sources, height, width, tiling)

    if needed(height, width, pictures) <= available:
        return
    smaller = [(height * part // 16 // 16 * 16, width * part // 16 // 16 * 16) for part in range(15, 0, -1)]
    fewer = [count for count in range(pictures - 1, 0, -1) if needed(height, width, count) <= available]
    sizes = [size for size in smaller if min(size) > 0 and needed(*size, pictures) <= available]
    ways = [f"{fewer[0]} at a time would fit"] if fewer else []
    if tiling.kind == "off" and needed(height, width, pictures, Tiling("blend")) <= available:
        ways.append('decoding in tiles would fit (vae_tiling="blend", --tiled-vae)')
    ways += [f"{sizes[0][1]}x{sizes[0][0]} pixels would fit"] if sizes else []
    asked, need = (f"{pictures} pictures", "need") if pictures > 1 else ("a picture", "needs")
    raise NotEnoughMemoryError(
        f"{asked} of {width}x{height} pixels {need} about {sized(needed(height, width, pictures))} "
        f"{'with' if weights else 'beside'} the weights, {sized(available)} are available on "
        f"{device.label}:{device.id}; {' or '.join(ways) or 'not even a small one would fit: free memory'}"
    )


def check_maps(sources: CheckpointManifest, height: int, width: int, tiling: Tiling) -> None:
    """Refuse exact tiles of a picture whose maps the host cannot hold beside an accelerator.

    Raises:
        NotEnoughMemoryError: If it cannot; names what takes less.
    """
    kept, available = map_bytes(sources.specs.vae, height, width, sources.dtypes["vae"], tiling), available_memory()
    if kept > available:
        raise NotEnoughMemoryError(
            f"exact tiles keep about {sized(kept)} of a picture of {width}x{height} pixels in the host's memory, "
            f'{sized(available)} are available; take vae_tiling="blend", or --tiled-vae blend'
        )


def check_request(
    sources: CheckpointManifest, device: Device, request: GenerationRequest, *, loaded: bool = True, again: int = 0
) -> None:
    """`check_picture` for all pictures of a request, which share a batch."""
    check_picture(
        sources,
        device,
        height=request.height,
        width=request.width,
        branches=request.num_branches,
        pictures=request.num_images,
        loaded=loaded,
        again=again,
        tiling=tiling_of(request),
    )


def tiling_of(request: GenerationRequest) -> Tiling:
    """What memory goes by: an image to begin with is encoded as a whole, but under "blend"."""
    return WHOLE if request.image is not None and request.tiling.kind == "exact" else request.tiling


def can_stream(cache: StepCache | None, nag_scale: float) -> bool:
    """Whether a request can be drawn with streamed blocks.

    First-block caching decides within one graph whether the other blocks run, and normalized attention guidance has
    blocks of its own.
    """
    return not isinstance(cache, FirstBlockCache) and not nag_scale


def step_bytes(spec: TransformerSpec, *, items: int, tokens: int, dtype: ModelDtype) -> int:
    """The same of one denoising step over [items, tokens, dim]."""
    size = BYTES[dtype]
    # A block holds its input, the normed input, and either both halves of SwiGLU with their product or queries, keys
    # and values with their float32 copies, whichever is more.
    feed_forward = 3 * spec.ffn_dim * size
    attention = 3 * spec.dim * size + 4 * spec.dim * _FLOAT32
    return items * tokens * (2 * spec.dim * size + max(feed_forward, attention))


def shared_rows(spec: TransformerSpec, *, items: int, tokens: int, dtype: ModelDtype) -> Rows:
    """What the same step consists of where several devices share it; arguments of `step_bytes`.

    Keys and values of all tokens are there twice: as they came, and put behind each other.
    """
    size = BYTES[dtype]
    token = step_bytes(spec, items=1, tokens=1, dtype=dtype)
    return Rows(items=items, tokens=tokens, token=token, gathered=2 * 2 * spec.dim * size, score=size)


def text_bytes(spec: TextEncoderSpec, *, prompts: int, tokens: int, dtype: ModelDtype) -> int:
    """The same of the text encoder over [prompts, tokens]; its blocks are those of the transformer with other names."""
    size, heads = BYTES[dtype], (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    attention = heads * (size + _FLOAT32)
    return prompts * tokens * (2 * spec.hidden_size * size + max(3 * spec.intermediate_size * size, attention))


def decode_bytes(
    spec: VaeSpec, *, pictures: int, height: int, width: int, dtype: ModelDtype, tiling: Tiling = WHOLE
) -> int:
    """The same of the decoder, which takes large pictures a few at a time, and tiles one by one."""
    size, widths = BYTES[dtype], spec.block_out_channels
    # The decoder's last blocks work at full size: the input, its float32 normalization and the output of a convolution.
    pixel = widths[0] * (2 * size + _FLOAT32) + widths[min(1, len(widths) - 1)] * size
    if not tiling.is_needed(height, width):
        return pictures_at_once(pictures, height, width) * height * width * pixel
    tile = min(height, tiling.size) * min(width, tiling.size)
    if tiling.kind == "blend":
        return tile * pixel
    # A unit has what it takes, its float32 normalization and two results; the middle block queries, keys and values of
    # all latents, what they come from and what they make.
    unit = tile * widths[0] * (3 * size + _FLOAT32)
    return max(unit, height * width // spec.downscale**2 * widths[-1] * 6 * size)


def map_bytes(spec: VaeSpec, height: int, width: int, dtype: ModelDtype, tiling: Tiling) -> int:
    """Host memory that exact tiles take for what the decoder's last layers make of a picture; 0 for other tiles."""
    is_kept = tiling.kind == "exact" and tiling.is_needed(height, width)
    return height * width * spec.block_out_channels[0] * BYTES[dtype] if is_kept else 0


def large_decode_bytes(spec: VaeSpec, dtype: ModelDtype) -> dict[str, int]:
    """What decoding a picture of 4096x4096 pixels takes as a whole, and in tiles of the usual size; for `info`."""
    kinds: tuple[TilingKind, ...] = ("off", "blend", "exact")
    found: dict[str, int] = {
        kind: decode_bytes(spec, pictures=1, height=_LARGE, width=_LARGE, dtype=dtype, tiling=Tiling(kind))
        for kind in kinds
    }
    kept = map_bytes(spec, _LARGE, _LARGE, dtype, Tiling("exact"))
    return {"height": _LARGE, "width": _LARGE, **found, "exact_on_host": kept}


def pictures_at_once(pictures: int, height: int, width: int) -> int:
    """How many pictures are decoded in one call: the decoder works at full size, and its memory adds up."""
    return max(1, min(pictures, _DECODED_PIXELS // (height * width)))
