"""The parts that the autoencoder's encoder and decoder are stacked from; pictures are [batch, rows, columns, channels].

    residual block: x + conv(silu(norm(conv(silu(norm x)))))
    middle block:   residual block, attention over all positions, residual block

A convolution takes what comes before it (norm and SiLU, or a doubling of the size) and what is added behind it as
arguments: on a CPU one op of `kernels` does all of it.

Reference: diffusers models/resnet.py, models/attention_processor.py (Attention, AttnProcessor2_0),
models/unets/unet_2d_blocks.py, models/upsampling.py, models/downsampling.py.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.nn.sequential import ModuleList
from max.experimental.tensor import Tensor, defaults
from max.graph.type import FilterLayout

from max_zimage.graphs import gpu_ops, ops
from max_zimage.graphs.kernel_library import is_nvidia, runs_on_nvidia, uses_cpu_kernels
from max_zimage.graphs.linear import linear
from max_zimage.graphs.model.attention import joint_attention

NORM_EPS = 1e-6
"""Added to the variances of group norms."""


def picture_dtype(weight: Tensor) -> DType:
    """Dtype that pictures have between the layers of a model with this weight.

    The weight's own on a GPU. On a CPU float32, whatever the weights are: MAX's bfloat16 convolution sums in bfloat16
    too, which costs six times the error of PyTorch over the embedded model's decoder, and the one in `kernels` rounds
    what it multiplies only.
    """
    return DType.float32 if weight.device.is_host else weight.dtype


def convolution(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1) -> PlainConv | PackedConv:
    """A convolution with bias, in the dtype and for the device that parameters are declared in."""
    dtype, mesh = defaults()
    layer: type[PlainConv | PackedConv] = CudnnConv if is_nvidia(mesh.devices[0]) else PlainConv
    layer = PackedConv if uses_cpu_kernels(dtype, mesh.devices[0]) else layer
    return layer(in_channels, out_channels, kernel=kernel, stride=stride)


class PlainConv(Module[..., Tensor]):
    """Convolution with bias; the weight is [kernel, kernel, in_channels, out_channels]."""

    filter_layout = FilterLayout.RSCF

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int) -> None:
        self.stride = stride
        # (before, after) of rows, then of columns; with a stride of two only the far edges are padded.
        self.padding = (0, 1, 0, 1) if stride == 2 else (kernel // 2,) * 4
        self.weight = Tensor.zeros(self._filter_shape(in_channels, out_channels, kernel))
        self.bias = Tensor.zeros([out_channels])

    def _filter_shape(self, in_channels: int, out_channels: int, kernel: int) -> list[int]:
        return [kernel, kernel, in_channels, out_channels]

    def forward(
        self,
        x: Tensor,
        *,
        norm: GroupNorm | GivenNorm | None = None,
        shortcut: Tensor | None = None,
        upsampling: int = 1,
    ) -> Tensor:
        """Convolve.

        Args:
            x: [batch, rows, columns, in_channels].
            norm: What x passes first, and SiLU then.
            shortcut: What is added to the result.
            upsampling: How often each pixel is repeated in both directions before.

        Returns:
            [batch, rows · upsampling / stride, columns · upsampling / stride, out_channels].
        """
        x = x if norm is None else norm(x, silu=True)
        x = x if upsampling == 1 else _repeated(x, upsampling)
        weight, bias = self.weight.cast(x.dtype), self.bias.cast(x.dtype)
        y = F.conv2d(
            *(x, weight, (self.stride, self.stride)),
            padding=self.padding,
            bias=bias,
            filter_layout=self.filter_layout,
        )
        return y if shortcut is None else shortcut + y


class CudnnConv(PlainConv):
    """`PlainConv` by cuDNN, on an NVIDIA GPU; the weight is [out_channels, in_channels, kernel, kernel].

    In the other order MAX 26.7 takes a kernel there that computes a pixel a thread, all output channels one by one.
    """

    filter_layout = FilterLayout.FCRS

    def _filter_shape(self, in_channels: int, out_channels: int, kernel: int) -> list[int]:
        return [out_channels, in_channels, kernel, kernel]


class PackedConv(Module[..., Tensor]):
    """`PlainConv` on a CPU. The weight is packed as `graphs.ops.convolution` wants it."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int) -> None:
        self.outputs, self.stride = out_channels, stride
        panels, units, numbers = ops.packed_shape(in_channels, out_channels, defaults()[0])
        self.weight = Tensor.zeros([panels, kernel * kernel, units, numbers])
        self.bias = Tensor.zeros([out_channels])

    def forward(
        self,
        x: Tensor,
        *,
        norm: GroupNorm | GivenNorm | None = None,
        shortcut: Tensor | None = None,
        upsampling: int = 1,
    ) -> Tensor:
        """Convolve; arguments as of `PlainConv.forward`, pictures float32."""
        moments = None if norm is None else norm.moments(x)
        return ops.convolution(
            *(x, moments, self.weight, self.bias, shortcut),
            outputs=self.outputs,
            stride=self.stride,
            upsampling=upsampling,
        )


class GroupNorm(Module[..., Tensor]):
    """Normalization over all positions and a group of channels, statistics in float32."""

    def __init__(self, channels: int, groups: int) -> None:
        self.groups = groups
        self.weight = Tensor.zeros([channels])
        self.bias = Tensor.zeros([channels])

    def forward(self, x: Tensor, *, silu: bool = False) -> Tensor:
        """[batch, rows, columns, channels] -> the same, and through SiLU if that is asked for."""
        channels = int(x.shape[3])
        if runs_on_nvidia(x.dtype, x.device) and gpu_ops.has_group_norm(channels, self.groups):
            return gpu_ops.group_norm(x, self.weight, self.bias, groups=self.groups, epsilon=NORM_EPS, silu=silu)
        normed = self._normed(x)
        return F.silu(normed) if silu else normed

    def _normed(self, x: Tensor) -> Tensor:
        """In plain operations, or in those of `kernels` for a CPU.

        In plain ones one channel is averaged at a time, over columns and then rows, and the few averages that are left
        are joined into groups: whole vectors of neighbouring channels are added.
        """
        x_f32 = x.cast(DType.float32)
        if uses_cpu_kernels(self.weight.dtype, self.weight.device):
            mean, scale, offset = (F.unsqueeze(each, 1) for each in F.split(self.moments(x_f32), [1, 1, 1], axis=1))
            return ((x_f32 - mean) * scale + offset).cast(x.dtype)
        centred = x_f32 - self._group_mean(x_f32)
        scale = F.rsqrt(self._group_mean(centred * centred) + NORM_EPS) * self.weight.cast(DType.float32)
        return (centred * scale + self.bias.cast(DType.float32)).cast(x.dtype)

    def moments(self, x: Tensor) -> Tensor:
        """Mean, scale and offset of each channel on a CPU, float32 [batch, 3, channels]: `graphs.ops.group_norm`."""
        return ops.group_norm(x, self.weight, self.bias, groups=self.groups, epsilon=NORM_EPS)

    def _group_mean(self, x: Tensor) -> Tensor:
        """Mean of each channel's group, float32 [batch, 1, 1, channels]."""
        batch, _, _, channels = x.shape
        grouped = (batch, 1, self.groups, channels // self.groups)
        means = F.reshape(F.mean(F.mean(x, axis=2), axis=1), grouped)
        return F.reshape(F.broadcast_to(F.mean(means, axis=3), grouped), [batch, 1, 1, channels])


class GivenNorm:
    """A group norm whose statistics are given: those of a whole picture, where there is only a part of it.

    Args:
        norm: Has weight and bias.
        statistics: float32 [batch, 2, channels], of each channel's group: the mean, and one over the deviation.
    """

    def __init__(self, norm: GroupNorm, statistics: Tensor) -> None:
        mean, inverse = F.split(statistics, [1, 1], axis=1)
        weight, bias = (F.reshape(each.cast(DType.float32), [1, 1, -1]) for each in (norm.weight, norm.bias))
        self._mean, self._scale, self._offset = mean, inverse * weight, F.broadcast_to(bias, mean.shape)

    def __call__(self, x: Tensor, *, silu: bool = False) -> Tensor:
        """As `GroupNorm.forward`."""
        mean, scale, offset = (F.unsqueeze(each, 1) for each in (self._mean, self._scale, self._offset))
        normed = ((x.cast(DType.float32) - mean) * scale + offset).cast(x.dtype)
        return F.silu(normed) if silu else normed

    def moments(self, x: Tensor) -> Tensor:
        """As `GroupNorm.moments`."""
        return F.concat([self._mean, self._scale, self._offset], axis=1)


AnyNorm = GroupNorm | GivenNorm


class ResnetBlock(Module[[Tensor], Tensor]):
    """Two convolutions beside a shortcut of the same width."""

    def __init__(self, channels: int, groups: int) -> None:
        self.norm1 = GroupNorm(channels, groups)
        self.conv1 = convolution(channels, channels)
        self.norm2 = GroupNorm(channels, groups)
        self.conv2 = convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, channels] -> the same."""
        return self.conv2(self.conv1(x, norm=self.norm1), norm=self.norm2, shortcut=x)


class WideningBlock(Module[[Tensor], Tensor]):
    """Two convolutions beside a shortcut that changes the width."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = convolution(in_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, groups)
        self.conv2 = convolution(out_channels, out_channels)
        self.conv_shortcut = convolution(in_channels, out_channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, in_channels] -> [batch, rows, columns, out_channels]."""
        return self.conv2(self.conv1(x, norm=self.norm1), norm=self.norm2, shortcut=self.conv_shortcut(x))


def resnet_block(in_channels: int, out_channels: int, groups: int) -> ResnetBlock | WideningBlock:
    """A residual block from one width to another."""
    if in_channels == out_channels:
        return ResnetBlock(in_channels, groups)
    return WideningBlock(in_channels, out_channels, groups)


class SpatialAttention(Module[[Tensor], Tensor]):
    """Every position attends all others, with a single head as wide as the picture has channels."""

    def __init__(self, channels: int, groups: int) -> None:
        self.group_norm = GroupNorm(channels, groups)
        self.qkv = linear(channels, 3 * channels, bias=True)
        self.to_out = linear(channels, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, channels] -> the same."""
        batch, rows, columns, channels = x.shape
        positions = F.reshape(self.group_norm(x), [batch, rows * columns, channels]).cast(self.qkv.weight.dtype)
        qkv = self.qkv(positions)
        if runs_on_nvidia(qkv.dtype, qkv.device):
            mixed = gpu_ops.wide_attention(*F.split(qkv, [channels] * 3, axis=2))
        else:
            mixed = joint_attention(F.reshape(qkv, [batch, rows * columns, 3, channels]), heads=1)
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
        self.conv = convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, rows, columns, channels] -> [batch, 2·rows, 2·columns, channels]."""
        return self.conv(x, upsampling=2)


class Downsampler(Module[[Tensor], Tensor]):
    """A convolution with a stride of two."""

    def __init__(self, channels: int) -> None:
        self.conv = convolution(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 2·rows, 2·columns, channels] -> [batch, rows, columns, channels]."""
        return self.conv(x)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Each pixel as a square."""
    batch, rows, columns, channels = x.shape
    pixels = F.reshape(x, [batch, rows, 1, columns, 1, channels])
    squares = F.broadcast_to(pixels, [batch, rows, times, columns, times, channels])
    return F.reshape(squares, [batch, rows * times, columns * times, channels])
