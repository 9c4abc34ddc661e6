"""What `benchmarks.kernels` measures: each op at one size, its data, and the same formula in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from max.dtype import DType
from max.experimental.nn import Module
from max.experimental.nn.norm import RMSNorm
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.checkpoint.names import Packing
from max_zimage.compile import work
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.linear import gated_linear, linear
from max_zimage.graphs.model.attention import rotary_attention
from max_zimage.graphs.model.vae_blocks import ResnetBlock
from tests.references import kernels as references

EPSILON = 1e-5
GROUPS = 32
_DEVICE = DeviceRef.CPU()


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is multiplied, attended and convolved.

    Attributes:
        dim: Width of a token.
        ffn_dim: Hidden width of the feed-forward layer.
        head_dim: Width of a head.
        tokens: Of the products.
        attended: Numbers of tokens of attention.
        pictures: Side and channels of pictures.
    """

    dim: int
    ffn_dim: int
    head_dim: int
    tokens: int
    attended: tuple[int, ...]
    pictures: tuple[tuple[int, int], ...]


FULL = Sizes(
    dim=3840, ffn_dim=10240, head_dim=128, tokens=1056, attended=(1056, 4128), pictures=((64, 512), (512, 128))
)
QUICK = Sizes(dim=64, ffn_dim=96, head_dim=32, tokens=37, attended=(50,), pictures=((12, 32),))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one size.

    Attributes:
        name: What the table calls it.
        dtype: Of its weights, and of its numbers where pictures are not float32 anyway.
        sizes: In words.
        gflop: Multiplications and additions, in 10^9.
        make: The Module, with the op or with its twin.
        types: Of the Module's inputs.
        inputs: Data.
        weights: Name -> float32 numbers, and how they are packed for the op.
        theirs: PyTorch's call.
        exact: What comes out in float64, or None where that would take too long.
    """

    name: str
    dtype: ModelDtype
    sizes: str
    gflop: float
    make: Callable[[], Module[..., Any]]
    types: tuple[TensorType, ...]
    inputs: tuple[torch.Tensor, ...]
    weights: Mapping[str, tuple[torch.Tensor, Packing | None]]
    theirs: Callable[[], torch.Tensor]
    exact: Callable[[], torch.Tensor] | None


def cases(sizes: Sizes, dtype: ModelDtype) -> list[Case]:
    """Every op in one dtype."""
    return [
        _product("q, k and v in one", dtype, sizes.tokens, sizes.dim, 3 * sizes.dim, gated=False),
        _product("SwiGLU's pair, gated", dtype, sizes.tokens, sizes.dim, 2 * sizes.ffn_dim, gated=True),
        _product("SwiGLU's second product", dtype, sizes.tokens, sizes.ffn_dim, sizes.dim, gated=False),
        *(_attention(dtype, tokens, sizes.dim // sizes.head_dim, sizes.head_dim) for tokens in sizes.attended),
        *(_resnet_block(dtype, side, channels) for side, channels in sizes.pictures),
    ]


class _Attention(Module[..., Tensor]):
    def __init__(self, head_dim: int, heads: int) -> None:
        self.heads = heads
        self.q_norm, self.k_norm = RMSNorm(head_dim, eps=EPSILON), RMSNorm(head_dim, eps=EPSILON)

    def forward(self, qkv: Tensor, rope: Tensor, valid_length: Tensor) -> Tensor:
        return rotary_attention(qkv, self.q_norm, self.k_norm, rope, heads=self.heads, valid_length=valid_length)


def _product(name: str, dtype: ModelDtype, tokens: int, inputs: int, outputs: int, *, gated: bool) -> Case:
    x, weight = _random(dtype, 1, tokens, inputs), _random(dtype, outputs, inputs)
    reference = references.gated_linear if gated else references.linear
    return Case(
        name=name,
        dtype=dtype,
        sizes=f"{tokens}x{inputs}x{outputs}",
        gflop=2 * tokens * inputs * outputs / 1e9,
        make=lambda: gated_linear(inputs, outputs // 2) if gated else linear(inputs, outputs),
        types=(TensorType(DType[dtype], ["items", "length", inputs], _DEVICE),),
        inputs=(x,),
        weights={"weight": (weight.float(), "gated" if gated else "panels")},
        theirs=lambda: reference(x, weight),
        exact=lambda: reference(x.double(), weight.double()),
    )


def _attention(dtype: ModelDtype, tokens: int, heads: int, head_dim: int) -> Case:
    qkv, angles = _random(dtype, 1, tokens, 3 * heads, head_dim), _random(dtype, 1, tokens, head_dim // 2).float()
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1)
    norms = {f"{name}_norm.weight": 1 + _random(dtype, head_dim) / 8 for name in "qk"}

    def theirs(wide: torch.dtype = qkv.dtype) -> torch.Tensor:
        numbers, query, key = (tensor.to(wide) for tensor in (qkv, *norms.values()))
        return references.rotary_attention(numbers, query, key, rope, None, heads, causal=False, epsilon=EPSILON)

    return Case(
        name=f"norms, RoPE and attention, {tokens} tokens",
        dtype=dtype,
        sizes=f"{tokens} tokens x {heads} heads x {head_dim}",
        gflop=work.attention(1, tokens, heads, head_dim, size=0).flops / 1e9,
        make=lambda: _Attention(head_dim, heads),
        types=(
            TensorType(DType[dtype], ["items", "length", 3 * heads, head_dim], _DEVICE),
            TensorType(DType.float32, ["items", "length", head_dim // 2, 2], _DEVICE),
            TensorType(DType.uint32, ["items"], _DEVICE),
        ),
        inputs=(qkv, rope, torch.tensor([tokens], dtype=torch.uint32)),
        weights={name: (tensor.float(), None) for name, tensor in norms.items()},
        theirs=theirs,
        exact=(lambda: theirs(torch.float64)) if tokens < 2048 else None,
    )


def _resnet_block(dtype: ModelDtype, side: int, channels: int) -> Case:
    """PyTorch has the picture channels last in memory, which is what its convolutions are fastest with."""
    names = [f"{layer}.{kind}" for layer in ("norm1", "conv1", "norm2", "conv2") for kind in ("weight", "bias")]
    shapes = dict.fromkeys(names, (channels,)) | dict.fromkeys(
        ("conv1.weight", "conv2.weight"), (channels, channels, 3, 3)
    )
    weights = {
        name: _random(dtype, *shape) / (channels**0.5 if len(shape) > 1 else 8) for name, shape in shapes.items()
    }
    x = _random(dtype, 1, channels, side, side).to(memory_format=torch.channels_last)
    exact = side * side * channels < 1 << 22
    return Case(
        name=f"residual block of the autoencoder, {channels} channels",
        dtype=dtype,
        sizes=f"{side}x{side}x{channels}",
        gflop=2 * 2 * 9 * side * side * channels * channels / 1e9,
        make=lambda: ResnetBlock(channels, GROUPS),
        types=(TensorType(DType.float32, ["batch", "rows", "columns", channels], _DEVICE),),
        inputs=(x.permute(0, 2, 3, 1).float().contiguous(),),
        weights={name: _as_ours(tensor.float()) for name, tensor in weights.items()},
        theirs=lambda: references.resnet_block(x, weights, GROUPS),
        exact=(lambda: references.resnet_block(x.double(), _wide(weights), GROUPS)) if exact else None,
    )


def _wide(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in weights.items()}


def _as_ours(tensor: torch.Tensor) -> tuple[torch.Tensor, Packing | None]:
    """A convolution's weight [out, in, height, width] as [height, width, in, out]; vectors as they are."""
    return (tensor.permute(2, 3, 1, 0).contiguous(), "taps") if tensor.ndim == 4 else (tensor, None)


def _random(dtype: ModelDtype, *shape: int) -> torch.Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return numbers.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
