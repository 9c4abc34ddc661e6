"""First-block caching: one block tells whether the others would say anything new, and if not they are left out.

    latents -> embed -> [first block] -> residual = output - input; is it similar to that of the last full step?
        yes: hidden = first block's output + what all other blocks added in that step
        no:  hidden = all other blocks of it; remember the residual and what they added
    hidden -> final layer -> velocity

The test and the branch are part of the graph. Its items decide together; with one item a call, every guidance branch of
every picture decides for itself, and a picture does not depend on what it shares a batch with.

A state of zeros is close to nothing, so the first step computes; so does every step whose threshold is 0.

Reference: diffusers hooks/first_block_cache.py, whose first block is that of the main layers; MAX
pipelines/diffusion/cache.py, fbcache_conditional_execution.
"""

from __future__ import annotations

from collections.abc import Sequence

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType, TensorValue

from max_zimage.graphs.dims import IMAGE_PADDED, IMAGE_TOKENS, ITEMS, TOKENS, FirstBlock
from max_zimage.graphs.layers import choose
from max_zimage.graphs.model.transformer import BlockContext, Transformer, TransformerSpec
from max_zimage.graphs.step.inputs import PredictInputs, predict_types


class FirstBlockStep(Module[..., tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Velocity of some items, computed or reused."""

    def __init__(self, spec: TransformerSpec, first: FirstBlock) -> None:
        self.spec, self.first = spec, first
        if not (spec.num_refiner_layers if first == "noise_refiner" else spec.num_layers):
            raise ValueError(f"the first block of {first} is to decide, and this transformer has none there")
        self.transformer = Transformer(spec)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One evaluation.

        Args:
            *inputs: `graphs.step.inputs.PredictInputs`, and behind them three:
                threshold, float32 [1]: the other blocks are left out where the mean absolute difference between the
                first block's residual and `first_residual` is below this share of the mean absolute `first_residual`;
                first_residual, what the first block added in the last full step, in the model's dtype; [items,
                image_padded, dim], or [items, tokens, dim] where the block is one of the main layers;
                tail_residual, [items, image_tokens, dim] in the model's dtype, what all blocks behind it added then.

        Returns:
            The velocity, float32 [items, image_tokens, patch_dim]; `first_residual` and `tail_residual` for the next
            step; and int32 [1], 1 if the other blocks were computed and 0 if not.
        """
        *own, threshold, first_residual, tail_residual = inputs
        given = PredictInputs(*own)
        spec, transformer, image_tokens = self.spec, self.transformer, given.latents.shape[1]
        around = BlockContext(
            given.caption_tokens,
            given.image_rope,
            given.rope,
            given.valid_length,
            given.offsets,
            # One variant for all rows: a size that is a symbol here would be read both in a branch and outside of it,
            # which MAX 26.7 cannot compile.
            given.modulation,
        )
        noisy = F.gather(given.latents, given.latent_rows, axis=0).cast(given.caption_tokens.dtype)
        before = transformer.embed(noisy, given.image_rope.shape[1])
        index = 0 if self.first == "noise_refiner" else spec.num_refiner_layers
        before = transformer.run(before, range(index), around)
        after = transformer.run(before, range(index, index + 1), around)
        added = after - (before if self.first == "noise_refiner" else transformer.join(before, around))
        head = after[:, :image_tokens]

        def reuse() -> Sequence[TensorValue]:
            return _values(head + tail_residual, first_residual, tail_residual, _constant(0, head))

        def compute() -> Sequence[TensorValue]:
            hidden = transformer.run(after, range(index + 1, spec.num_blocks), around)[:, :image_tokens]
            return _values(hidden, added, hidden - head, _constant(1, head))

        types = [value.type for value in _values(head, first_residual, tail_residual, _constant(0, head))]
        alike = is_similar(added, first_residual, threshold, given.valid_length)
        hidden, first_residual, tail_residual, computed = choose(alike, types, reuse, compute)
        return transformer.project(hidden, given.final_scale), first_residual, tail_residual, computed

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        return first_block_types(self.spec, self.first, dtype, device)


def first_block_types(
    spec: TransformerSpec, first: FirstBlock, dtype: DType, device: DeviceRef
) -> tuple[TensorType, ...]:
    """Types of the arguments of `FirstBlockStep.forward`."""
    table = TensorType(DType.float32, [spec.num_blocks, 4, 1, spec.dim], device)
    changed = IMAGE_PADDED if first == "noise_refiner" else TOKENS
    return (
        *predict_types(spec, dtype, device)._replace(modulation=table),
        TensorType(DType.float32, [1], device),
        TensorType(dtype, [ITEMS, changed, spec.dim], device),
        TensorType(dtype, [ITEMS, IMAGE_TOKENS, spec.dim], device),
    )


def is_similar(added: Tensor, previous: Tensor, threshold: Tensor, valid_length: Tensor) -> Tensor:
    """Whether the mean absolute difference of two changes is below a share of the second one's mean absolute value.

    Args:
        added: [items, length, dim].
        previous: like `added`; all zero, it is close to nothing.
        threshold: float32 [1], the share.
        valid_length: uint32 [items]; tokens behind it are padding of the batch and do not count.

    Returns:
        bool [].
    """
    length = added.shape[1]
    position = F.range(0, length, 1, out_dim=length, dtype=DType.int32, device=added.device)
    exists = F.unsqueeze(position, 0) < F.unsqueeze(valid_length.cast(DType.int32), 1)
    now, then = (each.cast(DType.float32) * F.unsqueeze(exists.cast(DType.float32), 2) for each in (added, previous))
    # In this order: MAX's x < y is "not x >= y", and NaN would resemble everything.
    return F.squeeze(threshold * _mean_abs(then) > _mean_abs(now - then), 0)


def _mean_abs(x: Tensor) -> Tensor:
    """float32 [items, length, dim] -> [1]."""
    return F.reshape(F.mean(F.mean(F.mean(F.abs(x), axis=2), axis=1), axis=0), [1])


def _constant(value: int, like: Tensor) -> Tensor:
    return F.constant([value], DType.int32, device=like.device)


def _values(*tensors: Tensor) -> list[TensorValue]:
    return [TensorValue(tensor) for tensor in tensors]
