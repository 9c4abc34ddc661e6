"""Packing, unpacking and the affine map between the autoencoder's latents and the transformer's.

Sizes: a single 2x2 square, a tall and a wide picture; one and two pictures.
"""

from collections.abc import Callable

import numpy as np
import pytest
from max.driver import Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph import Module as GraphModule

from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.model.latents import PackLatents, denormalize, normalize, token_squares, unpack

CHANNELS, SCALING, SHIFT = 16, 0.3611, 0.1159
CPU = DeviceRef.CPU()
SIZES = [(1, 2, 2), (2, 10, 14), (1, 24, 16)]


class Unpack(Module[[Tensor], tuple[Tensor, Tensor, Tensor]]):
    """All that is applied to latents on the way out, and its inverse."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents = unpack(tokens)
        decoder_latents = denormalize(latents, SCALING, SHIFT)
        return latents, decoder_latents, normalize(decoder_latents, SCALING, SHIFT)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        return (token_squares(CHANNELS, device),)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    """Both ways in one module: MAX takes as long for two small graphs as for one."""
    together = GraphModule()
    modules: dict[str, PackLatents | Unpack] = {
        "pack": build(lambda: PackLatents(CHANNELS), DType.float32, CPU),
        "unpack": build(Unpack, DType.float32, CPU),
    }
    graphs = [trace(module, module.input_types(DType.float32, CPU), name, together) for name, module in modules.items()]
    session = InferenceSession([CPU.to_device()])
    return session.init_all(compile_with_kernels(session, together, graphs), weights_registry={})


@pytest.fixture
def pack(models: dict[str, Model]) -> Callable[[Buffer], Buffer]:
    return lambda latents: models["pack"].execute(latents)[0]


@pytest.fixture
def unpack_all(models: dict[str, Model]) -> Callable[[Buffer], list[Buffer]]:
    return models["unpack"].execute


def as_squares(latents: np.ndarray) -> np.ndarray:
    batch, channels, height, width = latents.shape
    return latents.reshape(batch, channels, height // 2, 2, width // 2, 2)


def reference_tokens(latents: np.ndarray) -> np.ndarray:
    """The reference's token order, spelled out one value at a time through its own indices."""
    batch, channels, height, width = latents.shape
    tokens = np.empty((batch, height // 2 * (width // 2), 4 * channels), np.float32)
    for row in range(height):
        for column in range(width):
            token = row // 2 * (width // 2) + column // 2
            offset = (row % 2 * 2 + column % 2) * channels
            tokens[:, token, offset : offset + channels] = latents[:, :, row, column]
    return tokens


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_pack_orders_tokens_as_the_reference(pack, batch, height, width):
    latents = np.random.default_rng(0).standard_normal((batch, CHANNELS, height, width), np.float32)
    packed = pack(Buffer.from_numpy(as_squares(latents))).to_numpy()
    np.testing.assert_array_equal(packed, reference_tokens(latents))


def test_pack_equals_diffusers_patchify(pack):
    from diffusers import ZImageTransformer2DModel

    torch = pytest.importorskip("torch")
    latents = np.random.default_rng(1).standard_normal((1, CHANNELS, 10, 14), np.float32)
    image = torch.from_numpy(latents[0])[:, None]
    tokens, *_ = ZImageTransformer2DModel._patchify_image(None, image, 2, 1)
    np.testing.assert_array_equal(pack(Buffer.from_numpy(as_squares(latents))).to_numpy()[0], tokens.numpy())


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_unpack_undoes_pack_and_the_affine_maps_are_diffusers(unpack_all, batch, height, width):
    latents = np.random.default_rng(2).standard_normal((batch, CHANNELS, height, width), np.float32)
    tokens = reference_tokens(latents).reshape(batch, height // 2, width // 2, 2, 2, CHANNELS)
    unpacked, decoder_latents, again = (
        t.to_numpy().transpose(0, 3, 1, 2) for t in unpack_all(Buffer.from_numpy(tokens))
    )
    np.testing.assert_array_equal(unpacked, latents)
    expected = latents / np.float32(SCALING) + np.float32(SHIFT)
    np.testing.assert_allclose(
        decoder_latents, expected, rtol=2e-7, atol=2e-7
    )  # one rounding each of a product and a sum
    np.testing.assert_allclose(again, latents, rtol=1e-6, atol=1e-6)


def test_pack_names_a_view_of_another_number_of_channels(pack):
    with pytest.raises(ValueError, match=r"\(1, 17, 1, 2, 1, 2\).* does not match expected .*16"):
        pack(Buffer.from_numpy(np.zeros((1, CHANNELS + 1, 1, 2, 1, 2), np.float32)))
