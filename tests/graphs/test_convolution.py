"""Convolution and group norm of `kernels` against float64, in both dtypes.

Columns are counted around the 12 pixels of a tile, channels around vectors of 16 and panels of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from torch.nn.functional import conv2d, group_norm, interpolate, pad, silu

from max_zimage.checkpoint.layout import packed
from max_zimage.device.dtypes import DTYPES, ModelDtype, bfloat16_bits
from max_zimage.graphs import ops
from tests.references.op_modules import TORCH, Makers, Op, Ops, Typed, Wanted, buffer, check, numbers, run

HOST = DeviceRef.CPU()
EPSILON = 1e-6
SIZES = [(1, 2, 2), (2, 6, 14), (1, 24, 26)]


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """What an op does, and the channels that it does it with."""

    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    upsampling: int = 1
    groups: int = 0
    shortcut: bool = False

    def op(self, dtype: DType) -> Op:
        """The convolution, after the group norm if there are groups."""
        picture = TensorType(DType.float32, ["items", "rows", "columns", self.inputs], HOST)
        norms = [TensorType(dtype, [self.inputs], HOST)] * 2 if self.groups else []
        panels, units, width = ops.packed_shape(self.inputs, self.outputs, dtype)
        weight = TensorType(dtype, [panels, self.kernel**2, units, width], HOST)
        shortcut = [TensorType(DType.float32, ["items", "rows", "columns", self.outputs], HOST)] * self.shortcut
        return Op(self.call, [picture, *norms, weight, TensorType(dtype, [self.outputs], HOST), *shortcut])

    def call(self, x: Tensor, *rest: Tensor) -> Tensor:
        """Arguments in the order of `op`'s types."""
        norm = None
        if self.groups:
            norm, rest = ops.group_norm(x, *rest[:2], groups=self.groups, epsilon=EPSILON), rest[2:]
        weight, bias, *shortcut = rest
        return ops.convolution(
            *(x, norm, weight, bias, shortcut[0] if shortcut else None),
            outputs=self.outputs,
            stride=self.stride,
            upsampling=self.upsampling,
        )

    def reference(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """The same in torch, in the dtype of the arguments, the weight [out, in, height, width]."""
        hidden = x.permute(0, 3, 1, 2)
        if self.groups:
            scale, offset, *left = rest
            hidden, rest = silu(group_norm(hidden, self.groups, scale, offset, eps=EPSILON)), tuple(left)
        weight, bias, *shortcut = rest
        hidden = interpolate(hidden, scale_factor=self.upsampling, mode="nearest") if self.upsampling > 1 else hidden
        border = (0, 1, 0, 1) if self.stride == 2 else (self.kernel // 2,) * 4
        out = conv2d(pad(hidden, border), weight, bias, stride=self.stride).permute(0, 2, 3, 1)
        return out + shortcut[0] if shortcut else out

    def arguments(self, dtype: ModelDtype, items: int, rows: int, columns: int) -> list[torch.Tensor]:
        """Random ones that the dtype holds exactly, pictures too."""
        norms = [1 + numbers(dtype, self.inputs, seed=1) / 4, numbers(dtype, self.inputs, seed=2)]
        shapes = [(self.outputs, self.inputs, self.kernel, self.kernel), (self.outputs,)]
        shapes += [(items, rows, columns, self.outputs)] * self.shortcut
        picture = numbers(dtype, items, rows, columns, self.inputs) + 0.5
        others = [numbers(dtype, *shape, seed=3 + i) for i, shape in enumerate(shapes)]
        return [picture, *(norms if self.groups else []), *others]


CONVOLUTIONS = {
    "from a picture": Convolution(inputs=3, outputs=32),
    "to a picture": Convolution(inputs=48, outputs=3, groups=8),
    "shortcut": Convolution(inputs=40, outputs=40, groups=5, shortcut=True),
    "narrow": Convolution(inputs=8, outputs=20, groups=8),
    "one pixel": Convolution(inputs=16, outputs=70, kernel=1),
    "half the size": Convolution(inputs=16, outputs=16, stride=2),
    "twice the size": Convolution(inputs=24, outputs=33, upsampling=2),
}


def makers_of(name: ModelDtype) -> Makers:
    dtype = DType[name]
    makers: dict[str, Callable[[], Typed]] = {
        name: partial(convolution.op, dtype) for name, convolution in CONVOLUTIONS.items()
    }
    makers["group norm"] = lambda: Op(
        lambda x, weight, bias: ops.group_norm(x, weight, bias, groups=4, epsilon=EPSILON),
        [
            TensorType(DType.float32, ["items", "rows", "columns", 24], HOST),
            *[TensorType(dtype, [24], HOST)] * 2,
        ],
    )
    makers["any channels"] = lambda: Op(
        lambda x, weight, bias: ops.convolution(x, None, weight, bias.cast(dtype), None, outputs=32),
        [
            TensorType(DType.float32, ["items", "rows", "columns", "inputs"], HOST),
            TensorType(dtype, ["panels", "taps", "units", "numbers"], HOST),
            TensorType(DType.float32, ["outputs"], HOST),
        ],
    )
    return makers


OPS = Wanted(makers=makers_of)


@pytest.fixture(scope="module", params=DTYPES)
def compiled(request: pytest.FixtureRequest, compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Ops:
    return compiled_ops["test_convolution", request.param]


def as_ours(tensor: torch.Tensor, place: int) -> Buffer:
    """A weight packed, pictures in float32."""
    if tensor.ndim == 4 and place > 0 and tensor.shape[2] == tensor.shape[3] <= 3:
        values = tensor.permute(2, 3, 1, 0).float().contiguous().numpy()
        return packed(bfloat16_bits(values) if tensor.dtype == torch.bfloat16 else values, "taps")
    return buffer(tensor.float() if tensor.ndim == 4 else tensor)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_convolutions(compiled: Ops, name: str, size: tuple[int, int, int]) -> None:
    convolution = CONVOLUTIONS[name]
    arguments = convolution.arguments(compiled.dtype, *size)
    ours = run(compiled.models[name], *(as_ours(tensor, place) for place, tensor in enumerate(arguments)))
    plain, exact = (
        convolution.reference(*(tensor.to(dtype) for tensor in arguments))
        for dtype in (TORCH[compiled.dtype], torch.float64)
    )
    check(ours, plain, exact)


def test_no_pictures_are_no_pictures(compiled: Ops) -> None:
    x = Buffer(DType.float32, (0, 4, 5, 3), CPU())
    arguments = CONVOLUTIONS["from a picture"].arguments(compiled.dtype, 1, 4, 5)
    (out,) = compiled.models["from a picture"].execute(x, *(as_ours(tensor, 1) for tensor in arguments[1:]))
    assert list(out.shape) == [0, 4, 5, 32]


def test_group_norm_of_numbers_far_from_zero(compiled: Ops) -> None:
    """A mean a thousand times the deviation costs no more digits than subtracting it in float32 does."""
    x = numbers("float32", 2, 9, 11, 24) + 1000
    weight, bias = 1 + numbers(compiled.dtype, 24, seed=1) / 4, numbers(compiled.dtype, 24, seed=2)
    (out,) = compiled.models["group norm"].execute(*map(buffer, (x, weight, bias)))
    mean, scale, offset = torch.from_dlpack(out).double().unbind(1)
    ours = (x.double() - mean[:, None, None]) * scale[:, None, None] + offset[:, None, None]
    exact = group_norm(x.double().permute(0, 3, 1, 2), 4, weight.double(), bias.double(), EPSILON).permute(0, 2, 3, 1)
    assert (ours - exact).norm() < 1e-4 * exact.norm()  # half a unit in the last place of a mean of 1000 is 3e-5


def test_a_constant_picture_is_no_division_by_zero(compiled: Ops) -> None:
    weight, bias = numbers(compiled.dtype, 24, seed=1), numbers(compiled.dtype, 24, seed=2)
    (out,) = compiled.models["group norm"].execute(*map(buffer, (torch.full((1, 3, 5, 24), 0.7), weight, bias)))
    mean, scale, _ = torch.from_dlpack(out).unbind(1)
    assert torch.equal(mean, torch.full_like(mean, 0.7))
    torch.testing.assert_close(scale[0], weight.float() / EPSILON**0.5)


def test_channels_that_do_not_belong_together_are_refused(compiled: Ops) -> None:
    weight = as_ours(numbers(compiled.dtype, 32, 5, 3, 3), 1)
    with pytest.raises(Exception, match=r"x has 3 channels and the packed weight [56]"):
        compiled.models["any channels"].execute(buffer(numbers("float32", 1, 4, 4, 3)), weight, buffer(torch.zeros(1)))
