"""One transformer block, at the real model's width unless quick, against diffusers' own in torch.

The weights are random numbers that bfloat16 holds exactly, so that one float64 run is the reference of both dtypes.
Attention gets what it gets in the pipeline: a valid length here, no mask at all in diffusers.
"""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from max.driver import CPU, Buffer
from max.dtype import DType
from max.graph import DeviceRef, TensorType

from benchmarks.compiling import CompiledModule, compiled
from benchmarks.machine import TORCH_DTYPES, as_torch
from benchmarks.measure import Row, interleave, max_abs, relative_l2
from max_zimage.checkpoint.layout import weight_buffer
from max_zimage.checkpoint.load import scales_of
from max_zimage.checkpoint.names import TRANSFORMER
from max_zimage.checkpoint.quantized import quantized
from max_zimage.compile import work
from max_zimage.device.devices import upload, upload_as
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.graphs.dims import ITEMS
from max_zimage.graphs.linear import Storage, codes_of, stored_as
from max_zimage.graphs.model.blocks import ModulatedBlock
from tests.references.engine_weights import apart


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A block and the tokens it works on."""

    dim: int
    num_heads: int
    ffn_dim: int
    tokens: int
    norm_eps: float

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.num_heads

    @property
    def product_gflop(self) -> float:
        """Matrix products with weights, in 10^9."""
        return work.block_products(self, self.tokens, size=0).flops / 1e9

    @property
    def attention_gflop(self) -> float:
        """Both matrix products of attention, in 10^9."""
        return work.attention(1, self.tokens, self.num_heads, self.head_dim, size=0).flops / 1e9

    @property
    def gflop(self) -> float:
        """Both together; what is done element by element is left out."""
        return self.product_gflop + self.attention_gflop

    @property
    def sizes(self) -> str:
        """In words."""
        return f"dim {self.dim}, ffn {self.ffn_dim}, {self.tokens} tokens"


PACKINGS = {row.engine.removeprefix("{block}."): row.packing for row in TRANSFORMER}
FULL = Shape(dim=3840, num_heads=30, ffn_dim=10240, tokens=1056, norm_eps=1e-5)
QUICK = Shape(dim=256, num_heads=2, ffn_dim=682, tokens=96, norm_eps=1e-5)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Of one call: tokens [1, tokens, dim], angles [1, tokens, head_dim/2], timestep embedding [1, 256]."""

    tokens: torch.Tensor
    angles: torch.Tensor
    embedding: torch.Tensor


def rows(shape: Shape, repeats: int, roofs: dict[str, float]) -> list[Row]:
    """Measure both engines in every dtype."""
    block, inputs = random_block(shape), random_inputs(shape)
    with torch.inference_mode():
        expected = diffusers_call(copy.deepcopy(block).double(), inputs, torch.float64)().numpy()
        return [
            row for dtype in DTYPES for row in _rows_of_dtype(shape, block, inputs, dtype, repeats, roofs, expected)
        ]


def _rows_of_dtype(
    shape: Shape,
    block: ZImageTransformerBlock,
    inputs: Inputs,
    dtype: ModelDtype,
    repeats: int,
    roofs: dict[str, float],
    expected: np.ndarray,
) -> list[Row]:
    graph = compiled_block(shape, block, dtype)
    compile_seconds = graph.seconds
    ours = functools.partial(graph, *engine_inputs(shape, block, inputs, dtype))
    theirs = diffusers_call(copy.deepcopy(block).to(TORCH_DTYPES[dtype]), inputs, TORCH_DTYPES[dtype])
    calls: dict[str, Callable[[], object]] = {"diffusers": theirs, "ours": ours}
    outputs = {"diffusers": theirs().double().numpy(), "ours": as_torch(ours()[0]).double().numpy()}
    timings = interleave(calls, repeats, warmups=0)
    del graph, ours, theirs, calls
    gc.collect()
    return [
        Row(
            case=f"block {dtype}",
            variant=name,
            dtype=dtype,
            sizes=shape.sizes,
            timing=timing,
            compile_seconds=compile_seconds if name == "ours" else None,
            gflop=shape.gflop,
            roof=roofs.get(dtype),
            max_abs=max_abs(outputs[name], expected),
            relative_l2=relative_l2(outputs[name], expected),
            reference=name == "diffusers",
        )
        for name, timing in timings.items()
    ]


def random_block(shape: Shape) -> ZImageTransformerBlock:
    """A float32 block of diffusers with random weights that bfloat16 holds exactly.

    Raises:
        ValueError: If diffusers gives the feed-forward layer another width.
    """
    torch.manual_seed(0)
    block = ZImageTransformerBlock(0, shape.dim, shape.num_heads, shape.num_heads, shape.norm_eps, True).eval()
    if block.feed_forward.w1.out_features != shape.ffn_dim:
        raise ValueError(f"ffn_dim must be {block.feed_forward.w1.out_features} for this dim, got {shape.ffn_dim}")
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            parameter.copy_(parameter.bfloat16().float())
    return block


def random_inputs(shape: Shape) -> Inputs:
    """Numbers that bfloat16 holds exactly, save for the angles, which are not rounded in any dtype."""
    generator = torch.Generator().manual_seed(1)
    return Inputs(
        tokens=torch.randn(1, shape.tokens, shape.dim, generator=generator).bfloat16().float(),
        angles=torch.randn(1, shape.tokens, shape.head_dim // 2, generator=generator),
        embedding=torch.randn(1, min(shape.dim, 256), generator=generator).bfloat16().float(),
    )


def diffusers_call(block: ZImageTransformerBlock, inputs: Inputs, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A call of diffusers' block."""
    rotations = torch.polar(torch.ones_like(inputs.angles), inputs.angles)
    tokens, embedding = inputs.tokens.to(dtype), inputs.embedding.to(dtype)
    return lambda: block(tokens, None, rotations, embedding)


def engine_inputs(
    shape: Shape, block: ZImageTransformerBlock, inputs: Inputs, dtype: ModelDtype
) -> tuple[Buffer, Buffer, Buffer, Buffer]:
    """Arguments of `ModulatedBlock`; the modulation is computed as the engine does, in float32 and before."""
    scale_attention, gate_attention, scale_ffn, gate_ffn = block.adaLN_modulation(inputs.embedding)[0].chunk(4)
    modulation = torch.stack([1 + scale_attention, gate_attention.tanh(), 1 + scale_ffn, gate_ffn.tanh()])
    rope = torch.stack([inputs.angles.cos(), inputs.angles.sin()], dim=-1)
    return (
        upload_as(inputs.tokens.numpy(), dtype, CPU()),
        upload(rope.numpy(), CPU()),
        upload(np.array([shape.tokens], np.uint32), CPU()),
        upload(modulation.detach().numpy()[:, np.newaxis], CPU()),
    )


def compiled_block(
    shape: Shape, block: ZImageTransformerBlock, dtype: ModelDtype, storage: Storage | None = None
) -> CompiledModule:
    """Our block with the same weights and, as in the pipeline, any number of tokens.

    Args:
        shape: Of the block.
        block: Whose weights it has.
        dtype: Of what is not quantized.
        storage: How matrices are kept; None for whole weights.
    """
    weights: dict[str, Buffer] = {}
    for name, array in engine_weights(block).items():
        packing = PACKINGS.get(name)
        codes = codes_of(storage, array.shape[1]) if storage and packing in ("panels", "gated") else None
        if codes is None or packing is None:
            weights[name] = weight_buffer(array, DType[dtype], packing)
        else:
            weights[name], weights[scales_of(name)] = quantized(array, packing, codes)

    def make() -> ModulatedBlock:
        with stored_as(storage):
            return ModulatedBlock(shape)

    return compiled(make, dtype, input_types(shape, dtype), weights)


def input_types(shape: Shape, dtype: ModelDtype) -> tuple[TensorType, ...]:
    """Of `ModulatedBlock`'s arguments; one modulation serves all items."""
    device = DeviceRef.CPU()
    return (
        TensorType(DType[dtype], [ITEMS, "length", shape.dim], device),
        TensorType(DType.float32, [ITEMS, "length", shape.head_dim // 2, 2], device),
        TensorType(DType.uint32, [ITEMS], device),
        TensorType(DType.float32, [4, 1, shape.dim], device),
    )


def engine_weights(block: ZImageTransformerBlock) -> dict[str, np.ndarray]:
    state = block.state_dict()
    head_dim = len(state["attention.norm_q.weight"])
    query, key, value = (state[f"attention.to_{part}.weight"] for part in "qkv")
    weights = {
        "attention.qkv.weight": torch.cat([apart(query, head_dim), apart(key, head_dim), value]),
        "attention.out.weight": state["attention.to_out.0.weight"],
        "attention.q_norm.weight": apart(state["attention.norm_q.weight"], head_dim),
        "attention.k_norm.weight": apart(state["attention.norm_k.weight"], head_dim),
        "feed_forward.w13.weight": torch.cat([state[f"feed_forward.{part}.weight"] for part in ("w1", "w3")]),
        "feed_forward.w2.weight": state["feed_forward.w2.weight"],
    }
    norms = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
    weights |= {f"{name}.weight": state[f"{name}.weight"] for name in norms}
    return {name: tensor.numpy() for name, tensor in weights.items()}
