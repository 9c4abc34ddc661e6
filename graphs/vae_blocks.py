"""The parts that the autoencoder's encoder and decoder are stacked from; pictures are [batch, rows, columns, channels].

    residual block: x + conv(silu(norm(conv(silu(norm x)))))
    middle block:   residual block, attention over all positions, residual block

Reference: diffusers models/resnet.py, models/attention_processor.py (Attention, AttnProcessor2_0),
models/unets/unet_2d_blocks.py, models/upsampling.py, models/downsampling.py.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Linear, Module
from max.experimental.nn.sequential import ModuleList
from max.experimental.tensor import Tensor

from graphs.attention import attention

_NORM_EPS = 1e-6


def picture_dtype(weight: Tensor) -> DType:
    """Dtype that pictures have between the layers of a model with this weight.

    The weight's own on a GPU. On a CPU a bfloat16 convolution sums in bfloat16 too, which costs six times the error of
    PyTorch over the embedded model's decoder; there the weights alone are bfloat16.
    """
    return DType.float32 if weight.device.is_host else weight.dtype


class Conv(Module[[Tensor], Tensor]):
    """Convolution with bias; the weight is [kernel, kernel, in_channels, out_channels]."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1) -> None:
        self.stride = stride
        # (before, after) of rows, then of columns; with a stride of two only the far edges are padded.
        self.padding = (0, 1, 0, 1) if stride == 2 else (kernel // 2,) * 4
        self.weight = Tensor.zeros([kernel, kernel, in_channels, out_channels])
        self.bias = Tensor.zeros([out_channels])

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, in_channels] -> [batch, rows/stride, columns/stride, out_channels]."""
        weight, bias = self.weight.cast(x.dtype), self.bias.cast(x.dtype)
        return F.conv2d(x, weight, (self.stride, self.stride), padding=self.padding, bias=bias)


class GroupNorm(Module[[Tensor], Tensor]):
    """Normalization over all positions and a group of channels, statistics in float32."""

    def __init__(self, channels: int, groups: int) -> None:
        self.groups = groups
        self.weight = Tensor.zeros([channels])
        self.bias = Tensor.zeros([channels])

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, channels] -> the same.

        One channel is averaged at a time, over columns and then rows, and the few averages that are left are joined
        into groups: whole vectors of neighbouring channels are added. On two CPU cores at 256x256x128 this takes 19 ms
        with an error of 1e-7; MAX's own group norm, which wants channels first, 265 ms and 2e-5.
        """
        x_f32 = x.cast(DType.float32)
        centred = x_f32 - self._group_mean(x_f32)
        scale = F.rsqrt(self._group_mean(centred * centred) + _NORM_EPS) * self.weight.cast(DType.float32)
        return (centred * scale + self.bias.cast(DType.float32)).cast(x.dtype)

    def _group_mean(self, x: Tensor) -> Tensor:
        """Mean of each channel's group, float32 [batch, 1, 1, channels]."""
        batch, _, _, channels = x.shape
        grouped = (batch, 1, self.groups, channels // self.groups)
        means = F.reshape(F.mean(F.mean(x, axis=2), axis=1), grouped)
        return F.reshape(F.broadcast_to(F.mean(means, axis=3), grouped), [batch, 1, 1, channels])


class ResnetBlock(Module[[Tensor], Tensor]):
    """Two convolutions beside a shortcut of the same width."""

    def __init__(self, channels: int, groups: int) -> None:
        self.norm1 = GroupNorm(channels, groups)
        self.conv1 = Conv(channels, channels)
        self.norm2 = GroupNorm(channels, groups)
        self.conv2 = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, channels] -> the same."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class WideningBlock(Module[[Tensor], Tensor]):
    """Two convolutions beside a shortcut that changes the width."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = Conv(in_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, groups)
        self.conv2 = Conv(out_channels, out_channels)
        self.conv_shortcut = Conv(in_channels, out_channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, in_channels] -> [batch, rows, columns, out_channels]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


def resnet_block(in_channels: int, out_channels: int, groups: int) -> ResnetBlock | WideningBlock:
    """A residual block from one width to another."""
    if in_channels == out_channels:
        return ResnetBlock(in_channels, groups)
    return WideningBlock(in_channels, out_channels, groups)


class SpatialAttention(Module[[Tensor], Tensor]):
    """Every position attends all others, with a single head as wide as the picture has channels."""

    def __init__(self, channels: int, groups: int) -> None:
        self.group_norm = GroupNorm(channels, groups)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, channels] -> the same."""
        batch, rows, columns, channels = x.shape
        positions = F.reshape(self.group_norm(x), [batch, rows * columns, channels]).cast(self.to_q.weight.dtype)
        one_head = (batch, rows * columns, 1, channels)
        query, key, value = (F.reshape(layer(positions), one_head) for layer in (self.to_q, self.to_k, self.to_v))
        mixed = attention(query, key, value, scale=int(channels) ** -0.5)
        mixed = self.to_out(F.reshape(mixed, [batch, rows * columns, channels]))
        return x + F.reshape(mixed, [batch, rows, columns, channels]).cast(x.dtype)


class MiddleBlock(Module[[Tensor], Tensor]):
    """The only place where distant positions meet."""

    def __init__(self, channels: int, groups: int) -> None:
        self.attentions = ModuleList([SpatialAttention(channels, groups)])
        self.resnets = ModuleList([ResnetBlock(channels, groups), ResnetBlock(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, channels] -> the same."""
        before, after = self.resnets
        return after(self.attentions[0](before(x)))


class Upsampler(Module[[Tensor], Tensor]):
    """Each pixel becomes a 2x2 square, then a convolution."""

    def __init__(self, channels: int) -> None:
        self.conv = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, channels] -> [batch, 2·rows, 2·columns, channels]."""
        batch, rows, columns, channels = x.shape
        pixels = F.reshape(x, [batch, rows, 1, columns, 1, channels])
        squares = F.broadcast_to(pixels, [batch, rows, 2, columns, 2, channels])
        return self.conv(F.reshape(squares, [batch, rows * 2, columns * 2, channels]))


class Downsampler(Module[[Tensor], Tensor]):
    """A convolution with a stride of two."""

    def __init__(self, channels: int) -> None:
        self.conv = Conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 2·rows, 2·columns, channels] -> [batch, rows, columns, channels]."""
        return self.conv(x)
