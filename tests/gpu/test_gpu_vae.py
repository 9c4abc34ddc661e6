"""The autoencoder on an NVIDIA GPU at the published widths: its ops, its convolutions, and all of it.

Everything here is left out where there is no such GPU.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from max.driver import CPU, Accelerator, Buffer, accelerator_api, accelerator_count
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule

from max_zimage.device.libraries import check_libraries
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.model.vae import EncodeImage
from max_zimage.graphs.model.vae_blocks import convolution
from tests.graphs.test_vae import (
    Case,
    DecodeBoth,
    alone,
    compile_graphs,
    draw_latents,
    make_case,
    pixel_view,
    reference_decode,
    token_view,
)
from tests.references import gpu_pictures as references
from tests.references.gpu_pictures import NORMS, attended, heads, normed, picture, run
from tests.references.op_modules import check
from tests.tolerances import BFLOAT16_RATIO

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(accelerator_count() == 0 or accelerator_api() != "cuda", reason="there is no GPU of NVIDIA's"),
]

WIDTH = 512


@pytest.fixture(scope="module")
def gpu() -> Accelerator:
    device = Accelerator()
    check_libraries(device)
    return device


@pytest.fixture(scope="module")
def ops(gpu: Accelerator) -> dict[str, Model]:
    return references.compile_all(gpu, WIDTH)


# As on a CPU, and a picture of which each block of threads takes several runs of pixels.
@pytest.mark.parametrize(
    ("items", "rows", "columns"), [(1, 1, 1), (2, 5, 7), (1, 96, 90), (2, 128, 130), (1, 512, 500)]
)
@pytest.mark.parametrize("name", NORMS)
def test_group_norm(gpu: Accelerator, ops: dict[str, Model], name: str, items: int, rows: int, columns: int) -> None:
    given = picture(name, items, rows, columns)
    ours = run(ops[name], given, gpu)
    exact, plain = (normed(name, given, dtype) for dtype in (torch.float64, torch.bfloat16))
    for mine, simple, right in zip(ours, plain, exact, strict=True):
        check(mine, simple, right)
        rounding = (right.to(torch.bfloat16).double() - right).norm()
        assert (mine - right).norm() <= 1.02 * rounding + 1e-6 * right.norm()


@pytest.mark.parametrize("name", NORMS)
def test_a_large_mean_takes_nothing_from_the_deviation(gpu: Accelerator, ops: dict[str, Model], name: str) -> None:
    given = picture(name, 1, 200, 210, mean=300.0)
    (exact, _), (ours, _) = normed(name, given, torch.float64), run(ops[name], given, gpu)
    rounding = (exact.to(torch.bfloat16).double() - exact).norm()
    assert (ours - exact).norm() <= 1.02 * rounding + 2e-5 * exact.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e25])
def test_what_is_not_finite_stays_so(gpu: Accelerator, ops: dict[str, Model], bad: float) -> None:
    given = picture("4", 2, 50, 60)
    given[0][1, 3, 4, 9] = bad
    for ours in run(ops["4"], given, gpu):
        assert ours[1, :, :, 8:12].isnan().any()
        assert ours[0].isfinite().all()
        assert ours[1, :, :, 12:].isfinite().all()


# The last one takes two runs of queries: 16,384 are a picture of 1024x1024.
@pytest.mark.parametrize(("items", "length"), [(1, 64), (2, 100), (2, 4096), (1, 16384)])
def test_wide_attention(gpu: Accelerator, ops: dict[str, Model], items: int, length: int) -> None:
    given = heads(items, length, WIDTH)
    (ours,) = run(ops["attention"], given, gpu)
    some = slice(None) if length <= 4096 else torch.arange(0, length, 64)
    exact, plain = (attended([given[0][:, some], *given[1:]], dtype) for dtype in (torch.float64, torch.bfloat16))
    check(ours[:, some], plain, exact)


class Convolutions(Module[..., list[Tensor]]):
    """Those of the autoencoder: 3x3, with a shortcut, to half and to twice the size, 1x1, from and to few channels."""

    def __init__(self) -> None:
        self.square = convolution(128, 256)
        self.halved = convolution(128, 128, stride=2)
        self.pixelwise = convolution(128, 256, kernel=1)
        self.last = convolution(128, 3)
        self.first = convolution(3, 128)

    def forward(self, x: Tensor, few: Tensor) -> list[Tensor]:
        shortcut = self.pixelwise(x)
        return [
            shortcut,
            self.square(x, shortcut=shortcut),
            self.square(x, upsampling=2),
            self.halved(x),
            self.last(x),
            self.first(few),
        ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("items", "rows", "columns"), [(1, 16, 16), (2, 34, 50), (1, 128, 96)])
def test_convolutions(
    gpu: Accelerator, convolutions: dict[str, Model], dtype: str, items: int, rows: int, columns: int
) -> None:
    """Twice, because cuDNN is asked for an algorithm when the shape is another one than the call before had."""
    kind = getattr(torch, dtype)
    random = torch.Generator().manual_seed(1)
    given = [torch.randn((items, rows, columns, inputs), generator=random).to(kind) for inputs in (128, 3)]
    exact, plain = (convolved(given, kind, each) for each in (torch.float64, torch.bfloat16))
    for _ in range(2):
        ours = run(convolutions[dtype], given, gpu)
        for mine, simple, right in zip(ours, plain, exact, strict=True):
            check(mine, simple, right)


@pytest.fixture(scope="module")
def convolutions(gpu: Accelerator) -> dict[str, Model]:
    place, models = DeviceRef.from_device(gpu), {}
    for name in ("bfloat16", "float32"):
        dtype = DType[name]
        module, together = build(Convolutions, dtype, place), GraphModule()
        types = [TensorType(dtype, ["items", "rows", "columns", channels], place) for channels in (128, 3)]
        graph = trace(module, types, f"convolutions_{name}", together)
        weights = {each: as_buffer(value) for each, value in filters(getattr(torch, name)).items()}
        session = InferenceSession([gpu])
        compiled = session.init_all(compile_with_kernels(session, together, [graph]), weights_registry=weights)
        models[name] = compiled[f"convolutions_{name}"]
    return models


def filters(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    shapes = {
        "square": (256, 128, 3),
        "halved": (128, 128, 3),
        "pixelwise": (256, 128, 1),
        "last": (3, 128, 3),
        "first": (128, 3, 3),
    }
    made = {}
    for name, (out, into, side) in shapes.items():
        scale = (into * side * side) ** -0.5
        made[f"{name}.weight"] = (torch.randn((out, into, side, side), generator=random) * scale).to(dtype)
        made[f"{name}.bias"] = torch.randn(out, generator=random).to(dtype)
    return made


def as_buffer(tensor: torch.Tensor) -> Buffer:
    return Buffer.from_dlpack(tensor.contiguous())


def convolved(given: list[torch.Tensor], kind: torch.dtype, dtype: torch.dtype) -> list[torch.Tensor]:
    """What `Convolutions` computes, of numbers of one dtype in another one."""
    x, few = (tensor.to(dtype).permute(0, 3, 1, 2) for tensor in given)
    weights = {name: value.to(dtype) for name, value in filters(kind).items()}

    def layer(name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    shortcut = layer("pixelwise", x)
    results = [
        shortcut,
        layer("square", x, padding=1) + shortcut,
        layer("square", torch.nn.functional.interpolate(x, scale_factor=2), padding=1),
        layer("halved", torch.nn.functional.pad(x, (0, 1, 0, 1)), stride=2),
        layer("last", x, padding=1),
        layer("first", few, padding=1),
    ]
    return [result.permute(0, 2, 3, 1) for result in results]


@pytest.fixture(scope="module")
def published() -> Case:
    """The published shape with random weights; the norms' are not one and zero."""
    torch.manual_seed(5)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        norm_num_groups=32,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return make_case(model)


@pytest.fixture(scope="module")
def graphs(gpu: Accelerator, published: Case) -> list[Model]:
    return compile_graphs([DecodeBoth, EncodeImage], published, DType.bfloat16, DeviceRef.from_device(gpu))


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 128, 128), (2, 96, 160), (1, 256, 208)])
def test_decode(gpu: Accelerator, published: Case, graphs: list[Model], batch: int, height: int, width: int) -> None:
    """At most twice what torch loses in bfloat16 on a CPU."""
    latents = draw_latents(published, batch, height, width)
    exact, theirs = (
        reference_decode(published, latents, dtype).float().permute(0, 2, 3, 1).numpy()
        for dtype in (torch.float32, torch.bfloat16)
    )
    pixels, drawn = (output.to(CPU()).to_numpy() for output in graphs[0](token_view(latents).to(gpu)))
    assert error(pixels, exact) <= BFLOAT16_RATIO * error(theirs, exact)
    bytes_of = np.clip(exact * 127.5 + 127.5, 0, 255).round()
    assert np.abs(drawn.astype(int) - bytes_of).mean() <= 2 * np.abs(theirs - exact).mean() * 127.5 + 0.5


@torch.no_grad()
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 128, 128), (2, 96, 160), (1, 256, 208)])
def test_encode(gpu: Accelerator, published: Case, graphs: list[Model], batch: int, height: int, width: int) -> None:
    """The posterior's mode, at most twice as far off as torch's in bfloat16 on a CPU."""
    pixels = np.random.default_rng(4).integers(0, 256, (batch, height, width, 3), np.uint8)
    signed = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    shift, scale = published.spec.shift_factor, published.spec.scaling_factor
    rounded = deepcopy(published.reference).to(torch.bfloat16)
    exact, theirs = (
        ((model.encode(signed.to(model.dtype)).latent_dist.mean.float() - shift) * scale).numpy()
        for model in (published.reference, rounded)
    )
    ours = graphs[1](*alone(pixel_view(published, pixels).to(gpu), np.zeros_like(exact), gpu))[0].to(CPU()).to_numpy()
    assert error(ours, exact) <= BFLOAT16_RATIO * error(theirs, exact)
