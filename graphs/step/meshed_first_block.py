"""First-block caching on several devices: one decision for all of them, on the value of all of them.

Each device has a part of the first block's residual. What they add up over their parts is summed over the devices, so
that all of them compare the same two numbers; on the first device's comparison all blocks are left out, or none. What
follows from either is computed outside of the branch: MAX 26.7 does not take a value of a branch for one of the same
type from outside where the type has sums in it.

Arguments and results are those of `graphs.step.first_block.FirstBlockStep`, on the first device. Its items are one row,
of which the devices share the tokens.

Reference: see `graphs.step.first_block`.
"""

from __future__ import annotations

from collections.abc import Sequence

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType, TensorValue

from max_zimage.graphs.dims import CAPTION_PADDED, FirstBlock
from max_zimage.graphs.layers import choose
from max_zimage.graphs.model import mesh_spec
from max_zimage.graphs.model.mesh_parts import Place, each, home, joined, part, positions, spread
from max_zimage.graphs.model.mesh_spec import MeshSpec
from max_zimage.graphs.model.meshed import MeshedTransformer
from max_zimage.graphs.step.first_block import first_block_types
from max_zimage.graphs.step.inputs import PredictInputs


class MeshedFirstBlockStep(Module[..., tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Velocity of one row, computed or reused."""

    def __init__(self, spec: MeshSpec, first: FirstBlock) -> None:
        shape = spec.transformer
        self.spec, self.first, self.index = spec, first, 0 if first == "noise_refiner" else shape.num_refiner_layers
        if spec.groups > 1:
            raise ValueError("first-block caching takes one row at a time, which two groups of devices cannot share")
        if not (shape.num_refiner_layers if first == "noise_refiner" else shape.num_layers):
            raise ValueError(f"the first block of {first} is to decide, and this transformer has none there")
        # A row that is alone still has the padding of the batch behind it.
        self.transformer = MeshedTransformer(spec, is_padded=True)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One evaluation; see `graphs.step.first_block.FirstBlockStep.forward`."""
        *own, threshold, first_residual, tail_residual = inputs
        given, transformer = PredictInputs(*own), self.transformer
        mesh, places = transformer.mesh, transformer.places
        image, around = transformer.begin(
            F.gather(given.latents, given.latent_rows, axis=0),
            given.caption_tokens,
            given.image_rope,
            given.rope,
            given.valid_length,
            given.modulation,
        )
        before = transformer.run(image, range(self.index), around)
        after = transformer.run(before, range(self.index, self.index + 1), around)
        start = before if self.first == "noise_refiner" else transformer.join(before, around)
        added = each(mesh, lambda x, y: x - y)(after, start)
        padded = spread(given.image_rope, mesh)
        first = each(mesh, _first_part)(places, spread(first_residual, mesh), padded)
        tail = each(mesh, _tail_part)(places, spread(tail_residual, mesh), padded)
        head = each(mesh, _head)(after, around.image_rope)
        reused = each(mesh, lambda x, y: x + y)(head, tail)
        seen = (spread(x, mesh) for x in (given.rope, given.valid_length))
        sizes = each(mesh, _sizes)(places, added, first, padded, around.image_rope, *seen)
        now, then = F.split(home(F.allreduce_sum(sizes, mesh_axis=mesh_spec.TOKENS)), [1, 1], axis=0)

        def reuse() -> Sequence[TensorValue]:
            return _values(reused, _flag(0, threshold))

        def compute() -> Sequence[TensorValue]:
            blocks = range(self.index + 1, self.spec.transformer.num_blocks)
            hidden = each(mesh, _head)(transformer.run(after, blocks, around), around.image_rope)
            return _values(hidden, _flag(1, threshold))

        types = [value.type for value in _values(reused, _flag(0, threshold))]
        # In this order: MAX's x < y is "not x >= y", and NaN would resemble everything.
        *shards, computed = choose(F.squeeze(threshold * then > now, 0), types, reuse, compute)
        hidden = Tensor.from_shard_values(shards, head.mapping)
        is_new = spread(computed > 0, mesh)
        first = each(mesh, F.where)(is_new, added, first)
        tail = each(mesh, F.where)(is_new, each(mesh, lambda x, y: x - y)(hidden, head), tail)
        noisy = F.gather(given.latents, given.latent_rows, axis=0)
        velocity = transformer.project(hidden, around, spread(given.final_scale, mesh), like=noisy)
        remembered = _together(first, around.image_rope, like=first_residual)
        return velocity, remembered, _together(tail, around.image_rope, like=tail_residual), computed

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return first_block_types(self.spec.transformer, self.first, dtype, device)


def _first_part(place: Place, residual: Tensor, image_rope: Tensor) -> Tensor:
    """The device's part of what the first block added: of the image, and of the captions where there are some."""
    image = image_rope.shape[1]
    own = part(place, F.rebind(residual[:, :image], [residual.shape[0], image, residual.shape[2]]))
    if residual.shape[1] == image:
        return own
    caption = F.rebind(residual[:, image:], [residual.shape[0], CAPTION_PADDED, residual.shape[2]])
    return joined(own, part(place, caption))


def _tail_part(place: Place, residual: Tensor, image_rope: Tensor) -> Tensor:
    """The device's part of what all other blocks added, of which pad tokens have none."""
    items, count, dim = residual.shape
    nothing = F.constant(0.0, residual.dtype, device=residual.device)
    pads = F.broadcast_to(nothing, [items, image_rope.shape[1] - count, dim])
    return part(place, F.rebind(F.concat([residual, pads], axis=1), [items, image_rope.shape[1], dim]))


def _head(tokens: Tensor, image_rope: Tensor) -> Tensor:
    items, length = image_rope.shape[:2]
    return F.rebind(tokens[:, :length], [items, length, tokens.shape[2]])


def _sizes(
    place: Place,
    added: Tensor,
    first: Tensor,
    image_rope: Tensor,
    own_image_rope: Tensor,
    rope: Tensor,
    valid_length: Tensor,
) -> Tensor:
    """Sums of absolute values, float32 [2]: of the difference between two residuals, and of the second one.

    Captions behind the valid length are padding of the batch and do not count; the whole image does.
    """
    now, then = (x.cast(DType.float32) for x in (added, first))
    if added.shape[1] != own_image_rope.shape[1]:
        where = F.rebind(positions(place, image_rope.shape[1], rope.shape[1], added.device), [added.shape[1]])
        exists = F.unsqueeze(where, 0) < F.unsqueeze(valid_length.cast(DType.int32), 1)
        weight = F.unsqueeze(exists.cast(DType.float32), 2)
        now, then = now * weight, then * weight
    return F.concat([_sum(F.abs(x)) for x in (now - then, then)], axis=0)


def _sum(x: Tensor) -> Tensor:
    """float32 [items, length, dim] -> [1]."""
    return F.reshape(F.sum(F.sum(F.sum(x, axis=2), axis=1), axis=0), [1])


def _together(parts: Tensor, image_rope: Tensor, like: Tensor) -> Tensor:
    """The parts of all devices on the first one, images before captions, in the shape of `like`."""
    images, captions = [], []
    for shard, rope in zip(parts.local_shards, image_rope.local_shards, strict=True):
        moved, length = F.transfer_to(shard, parts.mesh.devices[0]), rope.shape[1]
        images.append(moved[:, :length])
        captions += [] if moved.shape[1] == length else [moved[:, length:]]
    whole = F.concat([*images, *captions], axis=1)
    return F.rebind(whole[:, : like.shape[1]], like.shape)


def _flag(value: int, like: Tensor) -> Tensor:
    return F.constant([value], DType.int32, device=like.device)


def _values(*tensors: Tensor) -> list[TensorValue]:
    return [TensorValue(shard) for tensor in tensors for shard in tensor.local_shards]
