"""One component alone, on random weights and inputs: no checkpoint is read, its shapes are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt, prod

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession
from max.experimental.nn import Module
from max.graph import DeviceRef, TensorType

from max_zimage import progress
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.compile.ahead_of_time import with_layers
from max_zimage.compile.compiler import CompiledGraph, compile_graph
from max_zimage.compile.registry import GRAPHS, made, spec_of
from max_zimage.device.devices import upload, upload_as
from max_zimage.device.dtypes import ModelDtype, bfloat16_bits
from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.graphs.ops import PANEL
from max_zimage.host.sizes import sized
from max_zimage.pipeline.estimate import decode_bytes, step_bytes, text_bytes
from max_zimage.pipeline.items import make_items
from max_zimage.pipeline.step_inputs import euler_step_inputs
from max_zimage.request.checks import side
from max_zimage.sampling.positions import PIXELS_PER_TOKEN, SEQUENCE_MULTIPLE, RopeSpec, text_rope

MAIN_GRAPHS = {"text_encoder": "text_encoder", "transformer": "denoise", "vae": "decode"}
"""Component -> the graph that does its main work."""

_CAPTION = SEQUENCE_MULTIPLE
_RANDOM = 1 << 20  # numbers that are drawn; larger weights repeat them, which takes seconds rather than minutes

_COMPILING = 2 << 30
"""Bytes that the compiler takes: the transformer's graph at the real width had 2.6 GiB beside its weights, 0.6 GiB of
which the imports take and 0.2 GiB the run."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Component:
    """What is to be run.

    Attributes:
        name: One of `MAIN_GRAPHS`.
        specs: Shapes of the model.
        dtype: Of weights and computation.
        batch: Captions of the text encoder, rows of the transformer's batch, or pictures of the autoencoder.
        tokens: Of each caption, or of each [image, caption] sequence, in which the caption has 32; 0 for the
            autoencoder.
        height: Pixels, for the autoencoder.
        width: Pixels, for the autoencoder.

    Raises:
        ValueError: If the model has no place for so many tokens or pixels.
    """

    name: str
    specs: ModelSpecs
    dtype: ModelDtype
    batch: int
    tokens: int
    height: int
    width: int

    def __post_init__(self) -> None:
        rows, columns = self.specs.transformer.axes_lens[1:]
        if self.name == "vae":
            side("height", self.height, rows * PIXELS_PER_TOKEN)
            side("width", self.width, columns * PIXELS_PER_TOKEN)
            return
        least = SEQUENCE_MULTIPLE if self.name == "text_encoder" else _CAPTION + SEQUENCE_MULTIPLE
        most = self.specs.text_encoder.max_positions if self.name == "text_encoder" else _CAPTION + rows * columns
        if self.tokens % SEQUENCE_MULTIPLE or not least <= self.tokens <= most:
            raise ValueError(
                f"tokens of the {self.name} must be a multiple of {SEQUENCE_MULTIPLE} from {least} to {most}, "
                f"got {self.tokens}"
            )
        if self.name == "transformer" and max(self.image_sides) > min(rows, columns):
            raise ValueError(
                f"{self.tokens} tokens are {_CAPTION} of a caption and {self.tokens - _CAPTION} of an image, which "
                f"would have {self.image_sides[0]}x{self.image_sides[1]} tokens; at most {rows}x{columns} are allowed"
            )

    @property
    def image_sides(self) -> tuple[int, int]:
        """Rows and columns of the transformer's image, in tokens, as near to a square as they can be."""
        image = self.tokens - _CAPTION
        rows = next(rows for rows in range(isqrt(image), 0, -1) if image % rows == 0)
        return rows, image // rows

    @property
    def sizes(self) -> str:
        """In words."""
        if self.name == "vae":
            return f"{self.batch} x {self.width}x{self.height} pixels"
        return f"{self.batch} x {self.tokens} tokens"

    @property
    def activation_bytes(self) -> int:
        """An estimate of the memory that a call takes beside the weights."""
        if self.name == "vae":
            one = decode_bytes(self.specs.vae, pictures=1, height=self.height, width=self.width, dtype="float32")
            return self.batch * one
        if self.name == "text_encoder":
            return text_bytes(self.specs.text_encoder, prompts=self.batch, tokens=self.tokens, dtype=self.dtype)
        return step_bytes(self.specs.transformer, items=self.batch, tokens=self.tokens, dtype=self.dtype)


def cut(specs: ModelSpecs, component: str, layers: int | None) -> ModelSpecs:
    """The same widths with fewer layers.

    Args:
        specs: Shapes of a model.
        component: The one that is run.
        layers: Layers of the text encoder that run, or main blocks and refiner blocks; None leaves all.

    Raises:
        ValueError: If the component has no layers to cut, or not so many.
    """
    if layers is None:
        return specs
    if component == "vae":
        raise ValueError(f"--layers {layers}: the vae has no layers to cut; ask for a smaller --height and --width")
    most = specs.text_encoder.num_layers - 1 if component == "text_encoder" else specs.transformer.num_layers
    if layers > most:
        raise ValueError(f"--layers must be from 1 to {most}, which the {component} has, got {layers}")
    few = with_layers(specs, layers)
    refiners = min(layers, specs.transformer.num_refiner_layers)
    return replace(few, transformer=replace(few.transformer, num_refiner_layers=refiners))


@dataclass(frozen=True)
class Prepared:
    """A component that was checked: its graph is defined, nothing is in memory yet."""

    component: Component
    device: Device
    module: Module[..., object]
    types: tuple[TensorType, ...]

    @classmethod
    def of(cls, component: Component, device: Device) -> Prepared:
        """Define the graph and compare its memory with what there is.

        Raises:
            NotEnoughMemoryError: If it does not fit; names what would make it smaller.
        """
        graph, place = MAIN_GRAPHS[component.name], DeviceRef.from_device(device)
        module, types = made(graph, component.specs, component.dtype, place)
        prepared = cls(component, device, module, types)
        prepared.check_memory(available_memory())
        return prepared

    @property
    def weight_bytes(self) -> int:
        """What the weights take."""
        return sum(_nbytes(tuple(map(int, tensor.shape)), tensor.dtype) for _, tensor in self.module.parameters)

    def check_memory(self, host: int) -> None:
        """Compare with the memory there is.

        Args:
            host: Bytes free; weights pass through them and graphs compile in them whatever the device is.

        Raises:
            NotEnoughMemoryError: If it does not fit.
        """
        if self.device.is_host:
            self._check(self.component.activation_bytes + _COMPILING, host, "on cpu")
            return
        self._check(_COMPILING, host, "in the host's memory, which they pass through")
        self._check(self.component.activation_bytes, int(self.device.stats["total_memory"]), f"on {self.device.label}")

    def _check(self, more: int, available: int, where: str) -> None:
        component, weights = self.component, self.weight_bytes
        if weights + more <= available:
            return
        smaller = "--height and --width" if component.name == "vae" else "--layers N to cut its depth, fewer --tokens"
        raise NotEnoughMemoryError(
            f"the {component.name} over {component.sizes} in {component.dtype} needs {sized(weights)} of weights and "
            f"about {sized(more)} to compile and run, {sized(available)} are available {where}; use {smaller} or a "
            "smaller --batch"
        )

    def load(self, session: InferenceSession) -> CompiledGraph:
        """Make random weights and define the graph with them; it compiles when it is first called."""
        name, specs = self.component.name, self.component.specs
        parameters = list(self.module.parameters)
        with progress.stage("Making random weights", len(parameters)) as shown:
            weights = {}
            for parameter, tensor in parameters:
                weights[parameter] = random_weight(tuple(map(int, tensor.shape)), self.component.dtype)
                shown.advance(parameter)
        graph = MAIN_GRAPHS[name]
        spec = GRAPHS[graph].key_of(spec_of(graph, specs))
        return compile_graph(graph, self.module, self.types, weights, session, spec=spec, device=self.device)

    def inputs(self) -> tuple[Buffer, ...]:
        """Random inputs on the device, in the shapes and with the tables that a request would bring."""
        make: dict[str, Callable[[Component, Device], tuple[Buffer, ...]]] = {
            "text_encoder": _text_inputs,
            "transformer": _step_inputs,
            "vae": _decode_inputs,
        }
        return make[self.component.name](self.component, self.device)


def random_weight(shape: tuple[int, ...], dtype: ModelDtype) -> Buffer:
    """A parameter in host memory: matrices keep the size of what they multiply, vectors are ones."""
    count = prod(shape)
    fan_in = _summed(shape)
    few = min(count, _RANDOM)
    numbers = np.ones(few, np.float32) if len(shape) == 1 else _normal(few) * np.float32(fan_in**-0.5)
    if dtype == "float32":
        return Buffer.from_numpy(np.resize(numbers, shape))
    return Buffer.from_numpy(np.resize(bfloat16_bits(numbers), count)).view(DType.bfloat16, shape)


def _summed(shape: tuple[int, ...]) -> int:
    """Numbers that one output sums: a matrix is [outputs, inputs], a plain convolution [k, k, inputs, outputs]."""
    if len(shape) == 2:
        return shape[1]
    if len(shape) == 4 and shape[0] == shape[1] and shape[0] in (1, 3):
        return prod(shape[:-1])
    # Packed: [panels, units, numbers] or [panels, taps, units, numbers]; a unit's numbers belong to a panel's outputs.
    return max(1, prod(shape[1:]) // PANEL)


def _nbytes(shape: tuple[int, ...], dtype: DType) -> int:
    return prod(shape) * dtype.size_in_bytes


def _normal(count: int) -> FloatArray:
    return np.resize(np.random.default_rng(0).standard_normal(min(count, _RANDOM), np.float32), count)


def _text_inputs(component: Component, device: Device) -> tuple[Buffer, ...]:
    spec, shape = component.specs.text_encoder, (component.batch, component.tokens)
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, shape, np.int64)
    return upload(tokens, device), upload(text_rope(spec.head_dim, spec.rope_theta, component.tokens), device)


def _step_inputs(component: Component, device: Device) -> tuple[Buffer, ...]:
    spec, batch = component.specs.transformer, component.batch
    rope = RopeSpec(axes_dims=spec.axes_dims, axes_lens=spec.axes_lens, theta=spec.rope_theta)
    rows, columns = component.image_sides
    items = make_items(rope, rows, columns, [_CAPTION] * batch, batch, device)
    captions = _normal(batch * _CAPTION * spec.dim).reshape(batch, _CAPTION, spec.dim)
    latents = _normal(batch * rows * columns * spec.patch_dim).reshape(batch, -1, spec.patch_dim)
    return euler_step_inputs(
        items,
        upload_as(captions, component.dtype, device),
        upload(latents, device),
        upload(np.full((spec.num_blocks, 4, 1, spec.dim), 0.5, np.float32), device),
        upload(np.ones(spec.dim, np.float32), device),
        delta=-0.1,
    ).arguments


def _decode_inputs(component: Component, device: Device) -> tuple[Buffer, ...]:
    rows, columns = component.height // PIXELS_PER_TOKEN, component.width // PIXELS_PER_TOKEN
    shape = (component.batch, rows, columns, 2, 2, component.specs.vae.latent_channels)
    return (upload(_normal(prod(shape)).reshape(shape), device),)
