"""Z-Image's diffusion transformer on several devices at once.

    latents, captions --> every device: its branch rows, and of their image and caption tokens its own part
    in every block: norms, heads and feed-forward of its own tokens; keys and values of all tokens of its rows, gathered
                    from the devices of its group; its own queries
    velocity of its own image tokens --> the first device

Queries stay where they are, so heads need not be shared out, and any number of devices will do. Each device holds all
weights. A device's image tokens stand before its caption tokens, and so does what is gathered of it: attention sums
over keys, whose order changes nothing but rounding.

Blocks are no subgraphs, as those of one device are: MAX 26.7 calls one whose sizes are none of the graph's arguments'
with wrong ones (docs/measured-facts.md).

With two groups each has half of the branch rows, the last row of the first group once more where their number is odd.
A single row is computed by both groups.

Reference: DeepSpeed-Ulysses and ring attention split the same way and send other tensors; MAX's `F.call_on_mesh`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.nn.sequential import ModuleList
from max.experimental.sharding.action import PerShard
from max.experimental.tensor import Tensor, default_device, defaults

from max_zimage.graphs import gpu_ops
from max_zimage.graphs.linear import linear
from max_zimage.graphs.model.blocks import fuses
from max_zimage.graphs.model.mesh_parts import Place, each, half, joined, part, positions, rows_of, spread
from max_zimage.graphs.model.mesh_spec import MeshSpec
from max_zimage.graphs.model.meshed_blocks import MeshedBlock, MeshedFusedBlock
from max_zimage.graphs.model.transformer import FinalLayer

_MASKED = -1e30  # see graphs.model.attention


class Surroundings(NamedTuple):
    """What the blocks see besides their tokens, on every device its own.

    Attributes:
        caption: [group_items, caption_part, dim].
        image_rope: float32 [group_items, image_part, head_dim/2, 2].
        rope: float32 [group_items, part, head_dim/2, 2], image and caption.
        hidden: [group_items, 1, tokens], float32 on a CPU and in the model's dtype elsewhere, added to the scores of
            all keys; None where all are attended.
        modulation: float32 [num_blocks, 4, group_items, dim].
    """

    caption: Tensor
    image_rope: Tensor
    rope: Tensor
    hidden: Tensor | None
    modulation: Tensor


class MeshedTransformer(Module[..., Tensor]):
    """`graphs.model.transformer.Transformer`, with the names of its parameters, on a mesh.

    Args:
        spec: The mesh.
        is_padded: Whether rows of unequal length are told apart by their valid lengths; without it all must be full.
            Hiding keys takes another kernel of MAX's on a GPU, and a mask in memory.
    """

    def __init__(self, spec: MeshSpec, is_padded: bool) -> None:
        self.around, self.spec, self.is_padded = spec, spec.transformer, is_padded
        self.mesh = spec.mesh(defaults()[1].devices[0])
        shape = spec.transformer
        with default_device(self.mesh):
            self.fused = fuses(shape)
            block: Callable[..., Module[..., Any]] = MeshedFusedBlock if self.fused else MeshedBlock
            self.x_embedder = linear(shape.patch_dim, shape.dim, bias=True)
            self.x_pad_token = Tensor.zeros([1, shape.dim])
            self.noise_refiner = ModuleList(block(shape) for _ in range(shape.num_refiner_layers))
            self.layers = ModuleList(block(shape) for _ in range(shape.num_layers))
            self.final_layer = FinalLayer(shape)

    def forward(
        self,
        latents: Tensor,
        caption_tokens: Tensor,
        image_rope: Tensor,
        rope: Tensor,
        valid_length: Tensor,
        modulation: Tensor,
        final_scale: Tensor,
    ) -> Tensor:
        """Velocity of every image token; all arguments and the result are on the first device.

        Args:
            latents: float32 [items, image_tokens, patch_dim]; see `Transformer.forward`, also for what follows.
            caption_tokens: [items, caption_padded, dim].
            image_rope: float32 [items, image_padded, head_dim/2, 2].
            rope: float32 [items, tokens, head_dim/2, 2].
            valid_length: uint32 [items]; not read where no row is padded.
            modulation: float32 [num_blocks, 4, items, dim].
            final_scale: float32 [dim].

        Returns:
            float32 [items, image_tokens, patch_dim].
        """
        image, around = self.begin(latents, caption_tokens, image_rope, rope, valid_length, modulation)
        tokens = self.run(image, range(self.spec.num_blocks), around)
        return self.project(tokens, around, spread(final_scale, self.mesh), like=latents)

    def begin(
        self,
        latents: Tensor,
        caption_tokens: Tensor,
        image_rope: Tensor,
        rope: Tensor,
        valid_length: Tensor,
        modulation: Tensor,
    ) -> tuple[Tensor, Surroundings]:
        """Send every device what it needs of the arguments of `forward`, and embed its image tokens."""
        captions = caption_tokens.dtype
        given = [
            spread(each, self.mesh) for each in (latents.cast(captions), caption_tokens, image_rope, rope, valid_length)
        ]
        image = each(self.mesh, _embedded)(self.places, self.x_embedder, self.x_pad_token, given[0], given[2])
        hidden = each(self.mesh, _hidden)(self.places, *given[1:]) if self.is_padded else None
        own = each(self.mesh, _surroundings)(self.places, *given[1:4], spread(modulation, self.mesh))
        caption, own_image_rope, own_rope, own_modulation = own
        return image, Surroundings(caption, own_image_rope, own_rope, hidden, own_modulation)

    def run(self, tokens: Tensor, blocks: range, around: Surroundings) -> Tensor:
        """Some of the blocks, counted from the noise refiner's first one; see `graphs.model.transformer.Trunk.run`."""
        if self.fused:
            return self._run_fused(tokens, blocks, around)
        refiners = self.spec.num_refiner_layers
        for index in blocks:
            modulation = each(self.mesh, lambda table, block=index: table[block])(around.modulation)
            if index < refiners:
                tokens = self.noise_refiner[index](tokens, around.image_rope, None, modulation)
                continue
            tokens = self.join(tokens, around) if index == refiners else tokens
            tokens = self.layers[index - refiners](tokens, around.rope, around.hidden, modulation)
        return tokens

    def _run_fused(self, tokens: Tensor, blocks: range, around: Surroundings) -> Tensor:
        refiners, normed, epsilon = self.spec.num_refiner_layers, None, self.spec.norm_eps
        rows = each(self.mesh, _rows)(around.modulation)
        for index in blocks:
            if index == refiners:
                tokens, normed = self.join(tokens, around), None
            first = gpu_ops.host_row(4 * index)
            if normed is None:
                normed = each(self.mesh, gpu_ops.scaled_norm)(tokens, rows, first, scale=0, epsilon=epsilon)
            if index < refiners:
                tokens, normed = self.noise_refiner[index](tokens, normed, around.image_rope, None, rows, first)
            else:
                tokens, normed = self.layers[index - refiners](tokens, normed, around.rope, around.hidden, rows, first)
        return tokens

    def join(self, image: Tensor, around: Surroundings) -> Tensor:
        """A device's image tokens with its caption tokens behind: [group_items, part, dim]."""
        found: Tensor = each(self.mesh, joined)(image, around.caption)
        return found

    def project(self, tokens: Tensor, around: Surroundings, final_scale: Tensor, like: Tensor) -> Tensor:
        """Final layer, and the results of all devices together on the first one: float32, in the shape of `like`."""
        parts = each(self.mesh, _projected)(self.final_layer, tokens, around.image_rope, final_scale)
        home = self.mesh.devices[0]
        moved = [F.transfer_to(shard, home) for shard in parts.local_shards]
        size, items, length = self.around.size, like.shape[0], like.shape[1]
        rows = [F.concat(moved[start : start + size], axis=1) for start in range(0, len(moved), size)]
        rows = [F.rebind(row[:, :length], [row.shape[0], length, row.shape[2]]) for row in rows]
        if len(rows) > 1:
            rows[1] = rows[1][2 * half(items) - items :]
        return F.rebind(F.concat(rows, axis=0), like.shape) if len(rows) > 1 else F.rebind(rows[0], like.shape)

    @property
    def places(self) -> PerShard[Place]:
        """Every device's place."""
        groups, size = self.around.groups, self.around.size
        return PerShard([Place(group, groups, part, size) for group in range(groups) for part in range(size)])


def _embedded(place: Place, embedder: Module[..., Tensor], pad: Tensor, latents: Tensor, rope: Tensor) -> Tensor:
    """The device's image tokens: all are embedded, which is little work, and its own are kept."""
    own, padded = rows_of(place, latents), rope.shape[1]
    items, count, dim = own.shape[0], own.shape[1], pad.shape[1]
    pads = F.broadcast_to(F.unsqueeze(pad, 0), [items, padded - count, dim])
    image = F.rebind(F.concat([embedder(own), pads], axis=1), [items, padded, dim])
    return part(place, image)


def _surroundings(
    place: Place, captions: Tensor, image_rope: Tensor, rope: Tensor, modulation: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Caption, rotary tables and modulation of the device's rows and tokens."""
    captions, image_rope, rope = (rows_of(place, given) for given in (captions, image_rope, rope))
    behind = rope[:, image_rope.shape[1] :]
    behind = F.rebind(behind, [*captions.shape[:2], *rope.shape[2:]])
    image, caption = part(place, image_rope), part(place, behind)
    return part(place, captions), image, joined(image, caption), rows_of(place, modulation, axis=2)


def _hidden(place: Place, captions: Tensor, image_rope: Tensor, rope: Tensor, valid_length: Tensor) -> Tensor:
    """What is added to scores, [group_items, 1, tokens]: very little where a key is padding of the batch."""
    valid, image, tokens = rows_of(place, valid_length), image_rope.shape[1], rope.shape[1]
    ordered = [positions(place._replace(part=each), image, tokens, valid.device) for each in range(place.parts)]
    order = F.rebind(F.concat(ordered, axis=0), [tokens])
    beyond = F.unsqueeze(order, 0) >= F.unsqueeze(valid.cast(DType.int32), 1)
    hidden = F.unsqueeze(beyond.cast(DType.float32) * _MASKED, 1)
    return hidden if hidden.device.is_host else hidden.cast(captions.dtype)


def _projected(final_layer: FinalLayer, tokens: Tensor, image_rope: Tensor, final_scale: Tensor) -> Tensor:
    return final_layer(tokens[:, : image_rope.shape[1]], final_scale).cast(DType.float32)


def _rows(modulation: Tensor) -> Tensor:
    """[num_blocks, 4, items, dim] -> [4 num_blocks, items, dim]."""
    blocks, _, items, dim = modulation.shape
    return F.reshape(modulation, [4 * int(blocks), items, dim])
