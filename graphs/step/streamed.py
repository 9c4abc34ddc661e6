"""A step whose main layers are called one by one, with weights that are handed over at each call.

    latents -> [start: embed, noise refiner, captions behind] -> tokens, rows of the modulation
    tokens -> [one main layer, its weights among the arguments] -> tokens               (called once for each layer)
    tokens -> [end: final layer, Guide, Advance] -> what `graphs.step.compose.Composed` gives

The layers' weights are arguments and no part of a graph: one compiled graph serves all of them, and whoever calls it
decides what is in memory. What is computed is what `graphs.step.compose.denoise_step` computes.

Reference: diffusers hooks/group_offloading.py, which moves the weights of a module before it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from max import tree
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs import gpu_ops
from max_zimage.graphs.dims import BATCH, IMAGE_TOKENS, ITEMS, OFFSETS, ROWS, TOKENS
from max_zimage.graphs.guiders.linear import LinearGuide
from max_zimage.graphs.model.blocks import attends_ragged, fuses
from max_zimage.graphs.model.transformer import BlockContext, FinalLayer, TransformerSpec, Trunk, block_kind
from max_zimage.graphs.step.advance import Advance
from max_zimage.graphs.step.compose import Composed
from max_zimage.graphs.step.inputs import PredictInputs, predict_types
from max_zimage.graphs.step.predict import modulation_of

T = TypeVar("T")


class StreamedStart(Module[..., tuple[Tensor, ...]]):
    """All that stands before the main layers."""

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec
        self.trunk = Trunk(spec, num_layers=0)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Begin an evaluation.

        Args:
            *inputs: `PredictInputs`.

        Returns:
            Tokens [items, tokens, dim] in the model's dtype; where blocks are fused, the same behind the first main
            layer's first norm; and the modulation of the main layers, float32 [4 num_layers, items, dim].
        """
        given, spec = PredictInputs(*inputs), self.spec
        modulation = modulation_of(given.modulation, given.variants)
        around = BlockContext(
            given.caption_tokens, given.image_rope, given.rope, given.valid_length, given.offsets, modulation
        )
        noisy = F.gather(given.latents, given.latent_rows, axis=0).cast(given.caption_tokens.dtype)
        image = self.trunk.embed(noisy, given.image_rope.shape[1])
        image = self.trunk.run(image, range(spec.num_refiner_layers), around)
        tokens = self.trunk.join(image, around)
        rows = self.trunk.rows(modulation)[4 * spec.num_refiner_layers :]
        if not self.trunk.fused:
            return tokens, rows
        return tokens, gpu_ops.scaled_norm(tokens, rows, scale=0, epsilon=spec.norm_eps), rows

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return predict_types(self.spec, dtype, device)


class StreamedBlock(Module[..., tuple[Tensor, ...]]):
    """A main layer without weights of its own.

    Attributes:
        is_fused: Whether it takes and gives tokens twice, see `graphs.model.blocks.FusedBlock`.
        is_ragged: Whether it takes offsets of sequences and not valid lengths, see `graphs.model.blocks`.
    """

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec, self.is_fused, self.is_ragged = spec, fuses(spec), attends_ragged(spec)
        block = block_kind(spec)(spec)
        # Out of sight: its parameters are arguments here.
        self._block: Callable[[], Module[..., Any]] = lambda: block

    @property
    def weight_types(self) -> dict[str, TensorType]:
        """Name within a layer -> type, of its weights in the order of the arguments."""
        return {
            name: TensorType(each.dtype, [int(side) for side in each.shape], DeviceRef.from_device(each.device))
            for name, each in self._block().parameters
        }

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One layer.

        Args:
            *inputs: Tokens as `StreamedStart` gives them, once or twice; then
                rope, float32 [items, tokens, head_dim/2, 2];
                extent, valid lengths, uint32 [items], or offsets of sequences, uint32 [sequences + 1];
                rows, float32 [rows, items, dim]: those of the modulation from the layer's first one on, its own four
                and, where blocks are fused and there is one, the next layer's first;
                the layer's weights in the order of `weight_types`.

        Returns:
            Tokens, as often.
        """
        count = 2 if self.is_fused else 1
        tokens, (rope, extent, rows, *weights) = inputs[:count], inputs[count:]
        block = with_weights(self._block(), weights)
        found = block(*tokens, rope, extent, rows)
        return tuple(found) if self.is_fused else (found,)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        spec = self.spec
        tokens = [TensorType(dtype, [ITEMS, TOKENS, spec.dim], device)] * (2 if self.is_fused else 1)
        return (
            *tokens,
            TensorType(DType.float32, [ITEMS, TOKENS, spec.head_dim // 2, 2], device),
            TensorType(DType.uint32, [OFFSETS if self.is_ragged else ITEMS], device),
            TensorType(DType.float32, [ROWS if self.is_fused else 4, ITEMS, spec.dim], device),
            *self.weight_types.values(),
        )


class ProjectInputs(NamedTuple, Generic[T]):
    """What `Project` takes.

    Attributes:
        latents: float32 [batch, image_tokens, patch_dim], which say how many tokens are the picture's.
        tokens: [items, tokens, dim] in the model's dtype, behind the last layer.
        final_scale: float32 [dim].
    """

    latents: T
    tokens: T
    final_scale: T


class Project(Module[..., Tensor]):
    """The final layer as a Predict."""

    Inputs = ProjectInputs

    def __init__(self, spec: TransformerSpec) -> None:
        self.spec = spec
        self.final_layer = FinalLayer(spec)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Velocity of every branch row.

        Args:
            *inputs: `ProjectInputs`.

        Returns:
            float32 [items, image_tokens, patch_dim].
        """
        given = ProjectInputs(*inputs)
        hidden = given.tokens[:, : given.latents.shape[1]]
        return self.final_layer(hidden, given.final_scale).cast(DType.float32)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        spec = self.spec
        return ProjectInputs(
            latents=TensorType(DType.float32, [BATCH, IMAGE_TOKENS, spec.patch_dim], device),
            tokens=TensorType(dtype, [ITEMS, TOKENS, spec.dim], device),
            final_scale=TensorType(DType.float32, [spec.dim], device),
        )


def streamed_end(spec: TransformerSpec) -> Composed:
    """All that stands behind the main layers."""
    return Composed(Project(spec), LinearGuide(), Advance(), spec.patch_dim)


def with_weights(module: Module[..., Any], weights: Sequence[Tensor]) -> Module[..., Any]:
    """The same Module with other tensors in the place of its parameters.

    Args:
        module: Stays as it is.
        weights: In the order of its `parameters`.
    """
    given = iter(weights)
    found: Module[..., Any] = tree.map(lambda _: next(given), module, leaf=Tensor)
    return found
