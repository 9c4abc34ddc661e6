"""The trainer's optimizer, against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.training import stacked_muon
from benchmarks.training.stacked_muon import StackedMuon


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)], ids=str)
def test_stacked_muon_is_muon(dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of three shapes, two of them stacked; one step in three leaves one without a gradient."""
    if dtype == torch.float32:  # PyTorch's own takes matrices to bfloat16, and to nothing else
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    monkeypatch.setattr(stacked_muon, "dtype_on", lambda device: dtype)
    random = torch.Generator().manual_seed(0)
    shapes = ((24, 8), (8, 24), (16, 16), (24, 8), (8, 24))
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = StackedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(3):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = other.grad = None if (step, number) == (1, 3) else torch.randn(one.shape, generator=random)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        moved = torch.linalg.norm(other - 1)
        assert torch.linalg.norm(one - other) < bound * moved
        assert torch.equal(optimizers[0].state[one]["momentum_buffer"], optimizers[1].state[other]["momentum_buffer"])
    with pytest.raises(ValueError, match="takes no closure"):
        optimizers[0].step(lambda: 0.0)


def test_a_cpu_computes_in_float32() -> None:
    assert stacked_muon.dtype_on(torch.device("cpu")) == torch.float32
    assert stacked_muon.dtype_on(torch.device("cuda")) == torch.bfloat16
