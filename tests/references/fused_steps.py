"""The graphs that an NVIDIA GPU gets, traced for a CPU in float32, with the embedded model's weights.

Ops for a GPU run there in loops of the same arithmetic, and products are those of a CPU. MAX's attention for a GPU does
not run there: `ragged_on_cpu` stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import DeviceRef
from max.graph import Module as GraphModule

from max_zimage.checkpoint.layout import apart, modulated_norms, weight_buffer
from max_zimage.checkpoint.load import load, scales_of
from max_zimage.checkpoint.names import Packing
from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import download
from max_zimage.graphs import ops
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.linear import Storage, stored_as
from max_zimage.graphs.model import attention, blocks
from max_zimage.graphs.model.conditioning import CaptionConditioning, ModulationTable
from max_zimage.graphs.step.compose import denoise_step
from max_zimage.graphs.step.predict import Predict

HOST = DeviceRef.CPU()


def compile_fused(
    plain: ZImageTransformerModel, *, in_eight_bits: bool = False, decoded: bool = False
) -> dict[str, Model]:
    """Conditioning, modulation and denoise with the weights of a transformer on a CPU.

    Args:
        plain: Has them.
        in_eight_bits: Whether the graphs keep them so.
        decoded: Whether they are those that are kept so, decoded before.
    """
    spec, dtype, together = plain.spec, DType.float32, GraphModule()
    with as_on_nvidia(), stored_as("int8_rows" if in_eight_bits else None):
        captions = build(lambda: CaptionConditioning(spec), dtype, HOST)
        table = build(lambda: ModulationTable(spec), dtype, HOST)
        step = build(lambda: denoise_step(spec), dtype, HOST)
        assert isinstance(step.predict, Predict)
        assert step.predict.transformer.fused
        assert captions.ragged
        assert table.fused
        graphs = [
            trace(captions, captions.input_types(dtype, HOST), "conditioning", together),
            trace(table, table.input_types(dtype, HOST), "modulation", together),
            trace(step, step.input_types(dtype, HOST), "denoise", together),
        ]
    session = InferenceSession(devices=[CPU()])
    compiled = compile_with_kernels(session, together, graphs)
    weights = whole_weights(plain, "int8_rows" if in_eight_bits or decoded else None)
    if decoded:
        weights = {name: _decoded(weights, name) for name in weights if not name.endswith(".scales")}
    return session.init_all(compiled, weights_registry=_named(weights))


@contextmanager
def as_on_nvidia() -> Iterator[None]:
    """Have the blocks of graphs that are traced for a CPU inside put together as for a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "runs_on_nvidia", lambda dtype, device: True)
        patch.setattr(attention, "ragged_mixed", ragged_on_cpu)
        patch.setattr(ops, "flash_attention_gpu", whole_on_cpu)
        yield


def ragged_on_cpu(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
    """What `graphs.model.attention.ragged_mixed` says, by the first sequence of each row: the other one is padding."""
    items, length = query.shape[:2]
    row = F.range(0, items, 1, out_dim=items, dtype=DType.int32, device=HOST)
    begin = F.unsqueeze(row * F.shape_to_tensor([length]).cast(DType.int32), 1)
    behind = F.unsqueeze(offsets.cast(DType.int32), 0) - begin  # [items, offsets]
    valid = F.min(F.where(behind > 0, behind, 2**30), axis=1)
    return _mixed(query, key, value, F.squeeze(valid, 1).cast(DType.uint32))


def whole_on_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float, **known: Any) -> Tensor:
    """What `graphs.ops.flash_attention_gpu` says, where a row is a sequence."""
    assert known == {"causal": False, "valid_length": None}
    every = F.broadcast_to(F.constant(2**30, DType.uint32, device=HOST), [query.shape[0]])
    return _mixed(query, key, value, every)


def _mixed(query: Tensor, key: Tensor, value: Tensor, valid_length: Tensor) -> Tensor:
    return ops.attention(F.concat([query, key, value], axis=2), valid_length, heads=int(query.shape[2]))


def whole_weights(plain: ZImageTransformerModel, storage: Storage | None) -> dict[str, Buffer]:
    """The transformer's, as they are loaded for a GPU."""
    whole = load(replace(plain.plan(), kept_as=storage), "float32")
    return whole | {**apart(whole), "norms": modulated_norms(whole, plain.spec)}


def _decoded(weights: Mapping[str, Buffer], name: str) -> Buffer:
    if weights[name].dtype != DType.int8:
        return weights[name]
    return Buffer.from_numpy((download(weights[name]) * download(weights[scales_of(name)])).T.copy())


def _named(weights: Mapping[str, Buffer]) -> dict[str, Buffer]:
    """Weights under all names that the graphs know them by; what is not quantized is packed for a CPU."""
    packed = {
        name: data if data.dtype == DType.int8 else weight_buffer(download(data).copy(), DType.float32, _packing(name))
        for name, data in weights.items()
    }
    return {**packed, **{f"predict.transformer.{name}": data for name, data in packed.items()}}


def _packing(name: str) -> Packing | None:
    if not name.endswith(".weight") or "norm" in name:
        return None
    return "gated" if ".w13." in name else "panels"
