"""The ops for pictures on a GPU, all in one graph, and what they compute with torch in any dtype."""

from __future__ import annotations

import torch
from max.driver import CPU, Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule
from torch.nn.functional import group_norm, silu

from max_zimage.graphs import gpu_ops
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import build, trace
from tests.references.gpu_ops import poison

EPSILON = 1e-6
NORMS = {"2 a group": (16, 8), "4": (128, 32), "8": (256, 32), "16": (512, 32)}
"""How wide a group is -> channels, groups: less than a thread's eight channels, as many, more; three are published."""


class Norm(Module[..., list[Tensor]]):
    """Group normalization, and once more with SiLU."""

    def __init__(self, channels: int, groups: int) -> None:
        self.channels, self.groups = channels, groups

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        return [
            gpu_ops.group_norm(x, weight, bias, groups=self.groups, epsilon=EPSILON, silu=silu)
            for silu in (False, True)
        ]

    def input_types(self, device: DeviceRef) -> list[TensorType]:
        vector = TensorType(DType.bfloat16, [self.channels], device)
        return [TensorType(DType.bfloat16, ["items", "rows", "columns", self.channels], device), vector, vector]


class Attention(Module[..., list[Tensor]]):
    """One wide head."""

    def __init__(self, width: int) -> None:
        self.width = width

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        return [gpu_ops.wide_attention(query, key, value)]

    def input_types(self, device: DeviceRef) -> list[TensorType]:
        return [TensorType(DType.bfloat16, ["items", "length", self.width], device)] * 3


def compile_all(device: Device, width: int) -> dict[str, Model]:
    """Every norm of `NORMS`, and "attention" with a head of this width."""
    place, together, graphs = DeviceRef.from_device(device), GraphModule(), []
    modules: dict[str, Norm | Attention] = {
        name: build(lambda sizes=sizes: Norm(*sizes), DType.bfloat16, place)  # type: ignore[misc]
        for name, sizes in NORMS.items()
    }
    modules["attention"] = build(lambda: Attention(width), DType.bfloat16, place)
    for name, module in modules.items():
        graphs.append(trace(module, module.input_types(place), name.replace(" ", "_"), together))
    session = InferenceSession([device])
    models = session.init_all(compile_with_kernels(session, together, graphs), weights_registry={})
    return {name: models[name.replace(" ", "_")] for name in modules}


def run(model: Model, given: list[torch.Tensor], device: Device = CPU()) -> list[torch.Tensor]:  # noqa: B008
    """Results in float64, from host memory to host memory; the device's memory held NaN where they are written."""
    inputs = [Buffer.from_dlpack(tensor.contiguous()).to(device) for tensor in given]
    poison(device, *[given[0].shape] * 4)
    return [torch.from_dlpack(result.to(CPU())).double() for result in model.execute(*inputs)]


def picture(name: str, items: int, rows: int, columns: int, *, mean: float = 0.0) -> list[torch.Tensor]:
    """A picture whose groups have unlike means and sizes, and an affine map that is none of nothing."""
    channels, _ = NORMS[name]
    random = torch.Generator().manual_seed(7)
    spread = torch.rand(channels, generator=random) * 3 + 0.5
    offset = torch.randn(channels, generator=random) + mean
    x = torch.randn((items, rows, columns, channels), generator=random) * spread + offset
    weight, bias = torch.randn(channels, generator=random) + 1, torch.randn(channels, generator=random)
    return [each.to(torch.bfloat16) for each in (x, weight, bias)]


def normed(name: str, given: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """What `Norm` computes."""
    x, weight, bias = (tensor.to(dtype) for tensor in given)
    y = group_norm(x.permute(0, 3, 1, 2), NORMS[name][1], weight, bias, EPSILON).permute(0, 2, 3, 1)
    return [y, silu(y)]


def heads(items: int, length: int, width: int, *, scale: float = 1.0) -> list[torch.Tensor]:
    """Queries, keys and values."""
    random = torch.Generator().manual_seed(3)
    return [
        (torch.randn((items, length, width), generator=random) * size).to(torch.bfloat16)
        for size in (scale, scale, 1.0)
    ]


def attended(given: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """What `Attention` computes."""
    query, key, value = (tensor.to(dtype) for tensor in given)
    scores = query @ key.transpose(1, 2) * query.shape[2] ** -0.5
    return torch.softmax(scores, dim=-1) @ value
