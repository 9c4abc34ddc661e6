"""What goes into a block and its pieces, and what must come out: float64, by torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from max.driver import Buffer
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.block import engine_weights, random_block
from benchmarks.gpu_run.bench import Bench

FLOOR = 1e-5
"""Relative error that is allowed in any dtype: a plain one of float32."""


@dataclass(frozen=True)
class Lengths:
    """Rows of a batch.

    Attributes:
        valid: Tokens of each item that exist.
        padded: Length of the rows.
    """

    valid: tuple[int, ...]
    padded: int

    def __str__(self) -> str:
        return f"{' and '.join(map(str, self.valid))} of {self.padded} tokens"

    @property
    def offsets(self) -> list[int]:
        """Where sequences begin and the last one ends: each item's tokens, then its padding."""
        ends = [0]
        for row, length in enumerate(self.valid):
            ends += [row * self.padded + length, (row + 1) * self.padded]
        return sorted(set(ends))


def lengths(bench: Bench) -> list[Lengths]:
    """One, and one more, row of a tile; sizes of pictures of 512x512 and 1024x1024; two captions of unequal length."""
    if bench.small:
        return [Lengths((32,), 32), Lengths((33,), 64), Lengths((40, 64), 64)]
    return [Lengths((n,), n + -n % 32) for n in (32, 33, 1056, 4160)] + [Lengths((4128, 4160), 4160)]


class BlockCase:
    """A block of random weights and what it is given.

    Args:
        bench: Where it is computed.
        block: From `block`.
        sizes: Rows.
    """

    def __init__(self, bench: Bench, block: ZImageTransformerBlock, sizes: Lengths) -> None:
        self.bench, self.block, self.sizes = bench, block, sizes
        shape, device = bench.shape, bench.torch_device
        generator = torch.Generator(device).manual_seed(sizes.padded)
        items = len(sizes.valid)
        self.x = torch.randn(items, sizes.padded, shape.dim, generator=generator, device=device).to(bench.torch_dtype)
        self.angles = 3 * torch.randn(
            items, sizes.padded, shape.head_dim // 2, generator=generator, device=device, dtype=torch.float32
        )
        self.embedding = torch.randn(items, min(shape.dim, 256), generator=generator, device=device)[:1]
        self.embedding = self.embedding.to(bench.torch_dtype).float()

    def by_torch(self, block: ZImageTransformerBlock, dtype: torch.dtype, *, mask: bool = True) -> torch.Tensor:
        """The reference's block in a dtype, [items, length, dim]."""
        rotations = torch.polar(torch.ones_like(self.angles), self.angles)
        embedding = self.embedding.to(dtype).expand(len(self.x), -1)
        return block(self.x.to(dtype), self._mask if mask else None, rotations, embedding)

    @property
    def _mask(self) -> torch.Tensor | None:
        if set(self.sizes.valid) == {self.sizes.padded}:
            return None
        place = torch.arange(self.sizes.padded, device=self.bench.torch_device)
        return place < torch.tensor(self.sizes.valid, device=self.bench.torch_device)[:, None]

    @cached_property
    def modulation(self) -> torch.Tensor:
        """float32 [4, dim]: 1 + scale and tanh(gate) of attention, then of the feed-forward layer."""
        parts = self.block.float().adaLN_modulation(self.embedding.float())[0].chunk(4)
        return torch.stack([1 + parts[0], parts[1].tanh(), 1 + parts[2], parts[3].tanh()])

    @cached_property
    def table(self) -> torch.Tensor:
        """float32 [5, dim]: the same times the norms' weights, and a first row of a next block."""
        norms = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
        weights = torch.stack([getattr(self.block, name).weight.float() for name in norms])
        rows = self.modulation * weights
        return torch.cat([rows, rows[:1]])

    def arguments(self, variant: str) -> list[Buffer]:
        """What a graph of the set "blocks" takes."""
        upload = self.bench.upload
        rope = upload(torch.stack([self.angles.cos(), self.angles.sin()], dim=-1))
        x, modulation = upload(self.x), upload(self._for_items(self.modulation))
        valid = self.bench.integers(self.sizes.valid)
        if variant == "whole":
            return [x, rope, modulation]
        if variant == "padded" or self.bench.device.is_host:
            return [x, rope, valid, modulation]
        offsets = self.bench.integers(self.sizes.offsets)
        if variant in ("ragged", "heads"):
            return [x, rope, offsets, modulation]
        first = torch.nn.functional.rms_norm(self.x.float(), self.x.shape[-1:], eps=self.bench.shape.norm_eps)
        normed = (first * self.table[0]).to(self.bench.torch_dtype)
        return [x, upload(normed), rope, offsets, upload(self._for_items(self.table))]

    def _for_items(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, dim] -> [rows, items, dim]."""
        return rows[:, None].expand(-1, self.x.shape[0], -1).contiguous()

    def error(self, actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
        """Relative and largest difference in the rows that exist; not a number where one of them is none."""
        return error_in(actual, expected, self.sizes.valid)


def block(bench: Bench) -> ZImageTransformerBlock:
    """The reference's block with random weights that bfloat16 holds, made on the device."""
    with torch.device(bench.torch_device):
        return random_block(bench.shape)


def weights(block: ZImageTransformerBlock) -> dict[str, torch.Tensor]:
    """All that any variant wants, float32 in host memory: queries, keys and values in one matrix and in two."""
    found = {name: torch.from_numpy(array) for name, array in engine_weights(copy.deepcopy(block).cpu()).items()}
    dim = block.dim
    found["attention.qk.weight"] = found["attention.qkv.weight"][: 2 * dim]
    found["attention.v.weight"] = found["attention.qkv.weight"][2 * dim :]
    return found


def error_in(actual: torch.Tensor, expected: torch.Tensor, valid: Sequence[int]) -> tuple[float, float]:
    """Relative and largest difference in the rows of each item that exist, in float64."""
    pairs = [(actual[item, :length].double(), expected[item, :length].double()) for item, length in enumerate(valid)]
    ours, theirs = (torch.cat([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1))
    return float((ours - theirs).norm() / theirs.norm()), float((ours - theirs).abs().max())


def attention_by_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, valid: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """Attention of each item over its tokens that exist, [items, length, heads, head_dim]; zeros behind them."""
    mixed = torch.zeros(query.shape, dtype=dtype, device=query.device)
    for item, length in enumerate(valid):
        q, k, v = (each[item : item + 1, :length].to(dtype).transpose(1, 2) for each in (query, key, value))
        mixed[item, :length] = scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
    return mixed
