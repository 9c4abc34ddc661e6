"""On an NVIDIA GPU: the ops of a block and ragged attention at the published widths, against float64.

Everything here is left out where there is none. What the outputs lie on is filled with NaN before.
"""

from __future__ import annotations

import pytest
import torch
from max.driver import Accelerator, Buffer, Device, accelerator_api, accelerator_count
from max.engine import Model
from torch.nn.functional import scaled_dot_product_attention

from max_zimage.device.libraries import check_libraries
from max_zimage.sampling.positions import sequence_offsets
from tests.references import gpu_ops as references
from tests.references import kernels
from tests.references.gpu_ops import NAMES, PUBLISHED, WidenedWeight, Widths, expected, inputs, poison
from tests.references.op_modules import check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(accelerator_count() == 0 or accelerator_api() != "cuda", reason="there is no NVIDIA GPU here"),
]

NARROW = Widths(query_heads=4, key_heads=2, head_dim=64, dim=256, ffn=1024)
"""Of the embedded model's block, but for the heads' numbers: these are those of a text encoder."""


@pytest.fixture(scope="module")
def device() -> Device:
    gpu = Accelerator()
    check_libraries(gpu)
    return gpu


@pytest.fixture(scope="module", params=[PUBLISHED, NARROW], ids=["published", "narrow"])
def ops(request: pytest.FixtureRequest, device: Device) -> tuple[Widths, Model]:
    return request.param, references.compile_all(request.param, device)


@pytest.mark.parametrize(("items", "length"), [(1, 32), (1, 33), (2, 33), (1, 1056), (1, 4160)])
def test_ops(ops: tuple[Widths, Model], items: int, length: int, device: Device) -> None:
    widths, model = ops
    given = inputs(widths, items, length, tables=items)
    heads = (items, length, widths.query_heads, widths.head_dim), (items, length, widths.key_heads, widths.head_dim)
    token = (items, length, widths.dim)
    poison(device, *heads, token, token, token, (items, length, widths.ffn))
    exact, plain = (expected(widths, given, dtype) for dtype in (torch.float64, torch.bfloat16))
    for name, ours, simple, right in zip(NAMES, references.run(model, given, device), plain, exact, strict=True):
        check(ours, simple, right)
        rounding = (right.to(torch.bfloat16).double() - right).norm()
        assert (ours - right).norm() < 1.02 * rounding, name


@pytest.fixture(scope="module", params=[(30, 128), (4, 64)], ids=["published", "narrow"])
def mix(request: pytest.FixtureRequest, device: Device) -> tuple[int, int, Model]:
    heads, head_dim = request.param
    return heads, head_dim, references.compile_mix(heads, head_dim, device)


@pytest.mark.parametrize(
    "lengths", [(32,), (33,), (1056,), (4128,), (4160,), (32, 64), (64, 64), (1056, 1088)], ids=str
)
def test_ragged_attention(mix: tuple[int, int, Model], lengths: tuple[int, ...], device: Device) -> None:
    heads, head_dim, model = mix
    row, generator = max(lengths), torch.Generator().manual_seed(sum(lengths))
    shape = (len(lengths), row, 3 * heads, head_dim)
    qkv = torch.randn(shape, generator=generator).to(torch.bfloat16)
    poison(device, (len(lengths), row, heads, head_dim))
    parts = [Buffer.from_dlpack(each.contiguous()).to(device) for each in qkv.split(heads, dim=2)]
    offsets = Buffer.from_numpy(sequence_offsets(lengths, row)).to(device)
    (mixed,) = model.execute(*parts, offsets)
    ours = references.downloaded(mixed)
    plain, exact = (kernels.attention(qkv.to(dtype), list(lengths), heads) for dtype in (torch.bfloat16, torch.float64))
    for item, length in enumerate(lengths):  # rows beyond are the batch's padding, which is never read
        check(ours[item, :length], plain[item, :length], exact[item, :length])
    assert ours.isfinite().all()


@pytest.mark.parametrize("widths", [(30, 128), (4, 64)], ids=["published", "narrow"])
def test_attention_of_some_queries_over_all_keys(widths: tuple[int, int], device: Device) -> None:
    """As several devices have it, on one: parts of odd lengths, the last keys of one row hidden."""
    heads, head_dim = widths
    model, generator = references.compile_part(heads, head_dim, device), torch.Generator().manual_seed(3)
    for part, lengths in ((11, (32, 20)), (1376, (4128, 4097))):
        tokens, items = lengths[0], len(lengths)
        given = [torch.randn(items, each, heads, head_dim, generator=generator) for each in (part, tokens, tokens)]
        beyond = torch.arange(tokens) >= torch.tensor(lengths)[:, None]
        hidden = (beyond * -1e30)[:, None]
        tensors = [each.to(torch.bfloat16).contiguous() for each in (*given, hidden)]
        poison(device, (items, part, heads, head_dim), (items, part, heads, head_dim))
        found = model.execute(*(Buffer.from_dlpack(each).to(device) for each in tensors))
        for ours, mask in zip(found, (torch.zeros_like(tensors[3]), tensors[3]), strict=True):
            plain, exact = (part_attention(tensors[:3], mask, dtype) for dtype in (torch.bfloat16, torch.float64))
            check(references.downloaded(ours), plain, exact)


def part_attention(given: list[torch.Tensor], mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    query, key, value = (each.to(dtype).transpose(1, 2) for each in given)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask.to(dtype)[:, None])
    return mixed.transpose(1, 2)


def test_a_widened_weight(device: Device) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = WidenedWeight.shape
    codes = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    scales = torch.rand(columns, generator=generator) * 1e-3
    given = torch.zeros(1, 1, rows, dtype=torch.bfloat16), codes, scales
    (wide,) = references.run(references.compiled(WidenedWeight, device), given, device)
    assert torch.equal(wide, (codes.float() * scales).to(torch.bfloat16).double())
