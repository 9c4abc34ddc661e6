"""Decoding and encoding against diffusers on the same weights.

Two models: the embedded one (four blocks, one layer each) and a random one (two blocks, two layers each, groups of
another size, norms far from where training starts them). Sizes: square, wide and tall, none a power of two twice; one
and two pictures. All sizes of a model go through one compiled graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.tensor import Tensor
from max.graph import DeviceRef
from max.graph import Module as GraphModule

from max_zimage.checkpoint.layout import weight_buffer
from max_zimage.checkpoint.names import VAE, Packing
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.graphs.kernel_library import compile_with_kernels, is_nvidia
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.model.vae import DecodeLatents, EncodeImage, VaeSpec, decode_float, quantize
from tests.references.engine_weights import engine_vae

ASSET = EMBEDDED / "vae"
CPU = DeviceRef.CPU()
SIZES = [(1, 128, 128), (2, 96, 128), (1, 80, 112)]
FLOAT32_L2 = 1e-5  # both sum the same convolutions in float32, in another order
BFLOAT16_RATIO = 2.0  # of torch's own bfloat16 error


class DecodeBoth(DecodeLatents):
    """The pixels before they are quantized beside the bytes, from one compiled graph."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        pixels = decode_float(self.spec, self.decoder, tokens)
        return pixels, quantize(pixels)


Kind = type[DecodeLatents] | type[DecodeBoth] | type[EncodeImage]
PARTS: dict[Kind, str] = {DecodeLatents: "decoder.", DecodeBoth: "decoder.", EncodeImage: "encoder."}


@dataclass(frozen=True)
class Case:
    """A reference model and its shape."""

    reference: AutoencoderKL
    spec: VaeSpec

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        return height // self.spec.downscale, width // self.spec.downscale


def embedded() -> Case:
    return make_case(AutoencoderKL.from_pretrained(ASSET, torch_dtype=torch.float32))


def random_model() -> Case:
    torch.manual_seed(5)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # the reference starts these at one and zero, which would hide a swap
                parameter.add_(0.2 * torch.randn_like(parameter))
    return make_case(model)


def make_case(model: AutoencoderKL) -> Case:
    config = model.config
    spec = VaeSpec(
        latent_channels=config.latent_channels,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
    )
    return Case(reference=model.eval(), spec=spec)


def compile_graphs(kinds: Sequence[Kind], case: Case, dtype: DType, place: DeviceRef = CPU) -> list[Model]:
    """One model a kind; both kinds as one module, because they share most kernels."""
    together, graphs = GraphModule(), []
    weights: dict[str, Buffer] = {}
    state = engine_vae(case.reference.state_dict(), keep_filters=is_nvidia(place))
    for kind in kinds:
        make: Callable[[], DecodeLatents | EncodeImage] = partial(kind, case.spec)
        module = build(make, dtype, place)
        own = {name: value for name, value in state.items() if name.startswith(PARTS[kind])}
        assert set(own) == {name for name, _ in module.parameters}
        weights |= {
            name: weight_buffer(value.contiguous().numpy(), dtype, packing(name) if place == CPU else None)
            for name, value in own.items()
        }
        graphs.append(trace(module, module.input_types(dtype, place), kind.__name__, together))
    session = InferenceSession(devices=[place.to_device()])
    models = session.init_all(compile_with_kernels(session, together, graphs), weights_registry=weights)
    return [models[kind.__name__] for kind in kinds]


def packing(name: str) -> Packing | None:
    return next(row.packing for row in VAE if name.endswith(row.engine.rpartition("}.")[2]))


# The embedded model's pictures are compared in the pipeline's tests as well, without compiling its decoder once more.
MODELS = [pytest.param(embedded, marks=pytest.mark.slow), random_model]


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def case(request) -> Case:
    return request.param()


@pytest.fixture(scope="module")
def graphs(case) -> list[Model]:
    return compile_graphs([DecodeBoth, EncodeImage], case, DType.float32)


@pytest.fixture
def decode(graphs) -> Model:
    return graphs[0]


@pytest.fixture
def encode(graphs) -> Model:
    return graphs[1]


def draw_latents(case: Case, batch: int, height: int, width: int) -> np.ndarray:
    rows, columns = case.latent_size(height, width)
    return np.random.default_rng(3).standard_normal((batch, case.spec.latent_channels, rows, columns), np.float32)


def token_view(latents: np.ndarray) -> Buffer:
    batch, channels, rows, columns = latents.shape
    squares = latents.reshape(batch, channels, rows // 2, 2, columns // 2, 2).transpose(0, 2, 4, 3, 5, 1)
    return Buffer.from_numpy(np.ascontiguousarray(squares))


def pixel_view(case: Case, pixels: np.ndarray) -> Buffer:
    batch, height, width, _ = pixels.shape
    side = case.spec.downscale
    return Buffer.from_numpy(pixels.reshape(batch, height // side, side, width // side, side, 3))


@torch.no_grad()
def reference_decode(case: Case, latents: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[batch, 3, rows, columns] in `dtype`, as the reference pipeline calls its decoder."""
    scaled = torch.from_numpy(latents).to(dtype) / case.spec.scaling_factor + case.spec.shift_factor
    model = case.reference if dtype == torch.float32 else deepcopy(case.reference).to(dtype)
    return model.decode(scaled, return_dict=False)[0]


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_decoded_floats_equal_diffusers(case, decode, batch, height, width):
    latents = draw_latents(case, batch, height, width)
    expected = reference_decode(case, latents).permute(0, 2, 3, 1).numpy()
    pixels, _ = decode(token_view(latents))
    assert relative_l2(pixels.to_numpy(), expected) <= FLOAT32_L2


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_decoded_bytes_equal_diffusers(case, decode, batch, height, width):
    """Equal but for values so near a half that the last float decides: never more than one apart, and rarely."""
    latents = draw_latents(case, batch, height, width)
    images = VaeImageProcessor().postprocess(reference_decode(case, latents), output_type="pil")
    expected = np.stack([np.asarray(image) for image in images])
    actual = decode(token_view(latents))[1].to_numpy()
    assert actual.dtype == np.uint8
    difference = np.abs(actual.astype(int) - expected)
    assert difference.max() <= 1
    assert np.mean(difference != 0) <= 1e-3


def alone(pixels: Buffer, chosen: np.ndarray, device: Device | None = None) -> list[Buffer]:
    """What `EncodeImage` takes where every picture is encoded, and no noise mixed with it."""
    rows, shares = np.arange(len(chosen), dtype=np.int32), np.array([0, 1], np.float32)
    given = [Buffer.from_numpy(each) for each in (rows, chosen, np.zeros_like(chosen), shares)]
    return [pixels, *(given if device is None else [each.to(device) for each in given])]


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_encoded_latents_equal_diffusers(case, encode, batch, height, width):
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
    noise = rng.standard_normal((batch, case.spec.latent_channels, *case.latent_size(height, width)), np.float32)
    with torch.no_grad():
        signed = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        posterior = case.reference.encode(signed).latent_dist
    for offset in (np.zeros_like(noise), noise):
        drawn = posterior.mean + posterior.std * torch.from_numpy(offset)
        expected = (drawn - case.spec.shift_factor) * case.spec.scaling_factor
        actual = encode(*alone(pixel_view(case, pixels), offset))[0].to_numpy()
        assert relative_l2(actual, expected.numpy()) <= FLOAT32_L2


@pytest.mark.slow
def test_bfloat16_decodes_as_well_as_torch(case):
    latents = draw_latents(case, 1, 96, 128)
    exact = reference_decode(case, latents).permute(0, 2, 3, 1).numpy()
    theirs = reference_decode(case, latents, torch.bfloat16).float().permute(0, 2, 3, 1).numpy()
    (bfloat16,) = compile_graphs([DecodeBoth], case, DType.bfloat16)
    ours, _ = bfloat16(token_view(latents))
    assert relative_l2(ours.to_numpy(), exact) <= BFLOAT16_RATIO * relative_l2(theirs, exact)


def test_image_of_another_size_than_the_noise_is_refused(case, encode):
    rows, columns = case.latent_size(96, 128)
    noise = np.zeros((1, case.spec.latent_channels, rows, columns), np.float32)
    with pytest.raises(ValueError, match="symbolic dimension 'latent_columns'"):
        encode(*alone(pixel_view(case, np.zeros((1, 96, 112, 3), np.uint8)), noise))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": ()}, "block_out_channels is empty"),
        ({"block_out_channels": (16, 30)}, r"\[30\] are not multiples of norm_num_groups 4"),
        ({"layers_per_block": 0}, "at least 1, got 0"),
        ({"scaling_factor": 0.0}, "scaling_factor is 0"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    good = {"latent_channels": 8, "block_out_channels": (16, 32), "layers_per_block": 2, "norm_num_groups": 4}
    with pytest.raises(ValueError, match=message):
        VaeSpec(**{**good, "scaling_factor": 0.4, "shift_factor": 0.1, **changes})
