"""What the embedded model's trainings share: rates, averages, what is said about steps, the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.training import __main__ as command
from benchmarks.training.training import AVERAGED, Plan, Training, share_of_weights


def test_the_learning_rate_rises_stays_and_falls() -> None:
    plan = Plan(steps=1000, batch=1, rate=1.0, warmup=100, decay=0.4)
    shares = [plan.share_of_rate(step) for step in (0, 49, 100, 599, 800, 999)]
    assert shares == pytest.approx([0.01, 0.5, 1.0, 1.0, 0.5, 0.0025])


def test_averages_forget_early_steps() -> None:
    shares = [share_of_weights(step) for step in (0, 1, 100, 4900, 4901, 9000)]
    assert shares == pytest.approx([1.0, 1 / 10.1, 1 / 20, 1 / AVERAGED, 1 / AVERAGED, 1 / AVERAGED])


def test_what_is_averaged_and_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight that goes down by its rate in each step: loss and gradient are its value and 1."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 5.0)
    plan = Plan(steps=80, batch=1, rate=0.01, warmup=1, decay=1e-9)
    training = Training(tmp_path, module, [torch.optim.SGD(module.parameters(), lr=plan.rate)], plan)
    shown: list[tuple[float, int]] = []

    def loss_of(step: Tensor) -> tuple[Tensor, ...]:
        return module.weight.sum(), 2 * step

    training.run(
        lambda step: (torch.tensor(float(step)),),
        loss_of,
        lambda twice: f"twice {twice:g}",
        lambda averaged, step: shown.append((float(next(averaged.parameters()).detach()), step)),
    )
    weights = [5 - 0.01 * (step + 1) for step in range(80)]
    average, averages = 0.0, []
    for step, weight in enumerate(weights):
        average += share_of_weights(step) * (weight - average)
        averages.append(average)
    assert [step for _, step in shown] == list(range(8, 81, 8))
    assert [value for value, _ in shown] == pytest.approx(averages[7::8], rel=1e-5)
    first, last = capsys.readouterr().out.splitlines()
    # Means since the line before: losses are the weights before their steps.
    assert "step     50  loss 4.7550" in first
    assert first.endswith("twice 49")
    assert "step     80  loss 4.3550" in last
    assert last.endswith("twice 129")


def test_a_gpu_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["train", str(tmp_path / "new"), "--device", "cuda"]) == 2
    assert "--device cuda needs a GPU and a PyTorch built for it, found none" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
