"""Every way to compute attention against float64: shared heads, causal, rows of unequal lengths, sequences of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn.norm import RMSNorm
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.device.dtypes import ModelDtype
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.attention import rotary_attention, sequence_mask
from max_zimage.graphs.model.attention_backends import (
    BACKENDS,
    Backend,
    attending_with,
    available,
    chosen_backend,
    plain_attention,
)
from max_zimage.graphs.model.blocks import Attention
from max_zimage.graphs.model.text_encoder import CausalAttention
from max_zimage.sampling.positions import sequence_offsets
from tests.references import kernels as references
from tests.references.op_modules import Makers, Ops, Typed, Wanted, buffer, check, numbers, run

HOST = DeviceRef.CPU()
EPSILON = 1e-5
HEADS, SHARED, WIDTH = 4, 2, 64
LENGTH = 45
VALID = [45, 33]


class Rotary(Typed):
    """Attention as layers take it: with valid lengths, or causal."""

    def __init__(self, backend: Backend, causal: bool) -> None:
        self.backend, self.causal = backend, causal
        self.types = [
            TensorType(DType.float32, ["items", "length", HEADS + 2 * SHARED, WIDTH], HOST),
            TensorType(DType.float32, [1, "length", WIDTH // 2, 2], HOST),
            TensorType(DType.uint32, ["items"], HOST),
        ]
        self.q_norm, self.k_norm = RMSNorm(WIDTH, eps=EPSILON), RMSNorm(WIDTH, eps=EPSILON)

    def forward(self, qkv: Tensor, rope: Tensor, valid: Tensor) -> list[Tensor]:
        known = {} if self.causal else {"valid_length": valid}
        return [
            rotary_attention(
                qkv, self.q_norm, self.k_norm, rope, heads=HEADS, causal=self.causal, backend=self.backend, **known
            )
        ]


class Ragged(Typed):
    """What stands behind norms and RoPE on a GPU, in the plain way."""

    def __init__(self) -> None:
        self.types = [
            TensorType(DType.float32, ["items", "length", 3, WIDTH], HOST),
            TensorType(DType.uint32, ["offsets"], HOST),
        ]

    def forward(self, qkv: Tensor, offsets: Tensor) -> list[Tensor]:
        query, key, value = F.split(qkv, [1, 1, 1], axis=2)
        return [plain_attention(query, key, value, WIDTH**-0.5, sequence_mask(offsets, value))]


def makers_of(_: ModelDtype) -> Makers:
    makers: dict[str, Callable[[], Typed]] = {
        f"{backend} {causal}": partial(Rotary, backend, causal) for backend in BACKENDS for causal in (False, True)
    }
    return makers | {"ragged": Ragged}


OPS = Wanted(
    makers=makers_of,
    dtypes=["float32"],
    weights=lambda _: {f"{each}_norm.weight": buffer(weight(each)) for each in "qk"},
)


@pytest.fixture(scope="module")
def compiled(compiled_ops: Mapping[tuple[str, ModelDtype], Ops]) -> Ops:
    return compiled_ops["test_attention_backends", "float32"]


def weight(name: str) -> torch.Tensor:
    return 1 + numbers("float32", WIDTH, scale=0.2, seed=ord(name))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_way_is_attention(compiled: Ops, backend: Backend, causal: bool) -> None:
    qkv = numbers("float32", 2, LENGTH, HEADS + 2 * SHARED, WIDTH)
    angles = numbers("float32", 1, LENGTH, WIDTH // 2, scale=3.0, seed=3)
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1)
    lengths = Buffer.from_numpy(np.array(VALID, np.uint32))
    ours = run(compiled.models[f"{backend} {causal}"], buffer(qkv), buffer(rope), lengths)
    valid = [LENGTH] * 2 if causal else VALID

    def reference(dtype: torch.dtype) -> torch.Tensor:
        mixed, query, key = (each.to(dtype) for each in (qkv, weight("q"), weight("k")))
        return references.rotary_attention(mixed, query, key, rope, valid, HEADS, causal, EPSILON)

    exact, plain = reference(torch.float64), reference(torch.float32)
    for item, count in enumerate(valid):
        check(ours[item, :count], plain[item, :count], exact[item, :count])


def test_tokens_of_a_sequence_are_mixed_with_each_other(compiled: Ops) -> None:
    qkv = numbers("float32", 2, LENGTH, 3, WIDTH)
    offsets = sequence_offsets(VALID, LENGTH)
    ours = run(compiled.models["ragged"], buffer(qkv), Buffer.from_numpy(offsets))
    flat = qkv.reshape(2 * LENGTH, 3, WIDTH)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        part = flat[None, begin:end]
        plain, exact = (
            references.attention(part.to(each), [end - begin], 1) for each in (torch.float32, torch.float64)
        )
        check(ours.reshape(1, 2 * LENGTH, 1, WIDTH)[:, begin:end], plain, exact)


def test_a_layer_keeps_what_it_was_made_with() -> None:
    def backends() -> list[Backend | None]:
        layers: list[Any] = [
            build(lambda: Attention(FULL_MODEL.transformer), DType.float32, HOST),
            build(lambda: CausalAttention(FULL_MODEL.text_encoder), DType.float32, HOST),
        ]
        return [each.backend for each in layers]

    assert backends() == [None, None]
    with attending_with("plain"):
        assert backends() == ["plain", "plain"]
        with attending_with(None):
            assert chosen_backend() is None
    assert chosen_backend() is None


def test_what_there_is() -> None:
    assert available(DType.float32, CPU(), (64, 128)) == BACKENDS
    assert available(DType.bfloat16, HOST, (96,)) == BACKENDS
    assert available(DType.float32, CPU(), (64, 48)) == ("max", "plain")
    assert available(DType.float16, CPU(), (64,)) == ("max", "plain")
    assert available(DType.bfloat16, DeviceRef.GPU(), (128,)) == ("max", "plain")
