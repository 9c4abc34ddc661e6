"""The trainer's optimizer on a GPU, against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.training.stacked_muon import StackedMuon


def test_stacked_muon_is_muon() -> None:
    """Matrices of three shapes, two of them stacked; one step in three leaves one without a gradient."""
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
        assert torch.linalg.norm(one - other) < 0.01 * moved
        assert torch.equal(optimizers[0].state[one]["momentum_buffer"], optimizers[1].state[other]["momentum_buffer"])
    with pytest.raises(ValueError, match="takes no closure"):
        optimizers[0].step(lambda: 0.0)
