"""What both trainings share: a learning rate over steps, a running average of weights, a curve, and going on later.

Everything that a step draws at random comes from its number, so that an interrupted training goes on as if it had not
been.
"""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.training.gradients import Gradients, Numbers
from benchmarks.training.stacked_muon import StackedMuon

LOG_STEPS = 50
SAVE_SECONDS = 60.0
AVERAGED = 500
"""Steps that the average of weights reaches back, once there are ten times as many."""
_VERSION = 2

M = TypeVar("M", bound=nn.Module)
"""Of what a state to go on from contains."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train and how fast.

    Attributes:
        steps: Updates of the weights.
        batch: Pictures a step.
        rate: Highest learning rate.
        warmup: Steps until it is reached.
        decay: Share of the steps, at the end, in which it falls to nothing in a straight line.
        device: Where to compute, as torch names it.
    """

    steps: int
    batch: int
    rate: float
    warmup: int
    decay: float = 0.4
    device: str = "cpu"

    def share_of_rate(self, step: int) -> float:
        """Learning rate of a step, as a share of the highest."""
        left = (self.steps - step) / (self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, max(left, 0.001))

    def half(self) -> torch.autocast:
        """Products in bfloat16 where they are computed."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


def chance_of(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random numbers of one step, numpy's and torch's."""
    return np.random.default_rng((seed, step)), torch.Generator().manual_seed(seed * 1_000_003 + step)


def muon(module: nn.Module, plan: Plan, others: Sequence[str] = ()) -> list[Optimizer]:
    """Muon for matrices, AdamW for vectors and for matrices whose name holds one of `others`.

    The autoencoder reaches 22 dB in 150 steps of Muon, 13 dB in as many of AdamW.
    """
    wanted = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in wanted if p.ndim == 2 and not any(other in name for other in others)]
    taken = {id(p) for p in matrices}
    rest = [p for _, p in wanted if id(p) not in taken]
    return [
        StackedMuon(matrices, lr=plan.rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        AdamW(rest, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def share_of_weights(step: int) -> float:
    """How far a step draws the average towards its weights; early ones are forgotten soon, the start at once."""
    return max(1 / AVERAGED, 1 / (10 + step / 10)) if step else 1.0


class _Kernel(nn.Module):
    """A convolution's weight as what it is made from: a matrix of one row an output."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self._shape = shape

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.view(self._shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)


def kernels_as_matrices(module: nn.Module) -> None:
    """Let Muon train convolutions, which takes matrices only; undone by `kernels_as_they_were`."""
    for part in list(module.modules()):
        if isinstance(part, nn.Conv2d):
            parametrize.register_parametrization(part, "weight", _Kernel(part.weight.shape))


def kernels_as_they_were(module: nn.Module) -> None:
    """Give convolutions their plain weights back."""
    for part in list(module.modules()):
        if isinstance(part, nn.Conv2d):
            parametrize.remove_parametrizations(part, "weight")


class _Stateful(Protocol):
    """What can be saved and go on later."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> object: ...


class Training(Generic[M]):
    """Trains one module in a folder, from where the last run there was stopped.

    Attributes:
        module: Whose parameters that want gradients are trained.
        averaged: The same module with the running average of its weights, which is what is kept.
    """

    def __init__(self, folder: Path, module: M, optimizers: list[Optimizer], plan: Plan) -> None:
        """Begin, or go on from what is in the folder; the module is on the plan's device already."""
        self.module = module
        self.averaged = copy.deepcopy(module)
        self._optimizers, self._plan = optimizers, plan
        self._schedules = [LambdaLR(optimizer, plan.share_of_rate) for optimizer in optimizers]
        self._state, self._curve = folder / "state.pt", folder / "curve.csv"
        self._seconds, self._step = 0.0, 0
        folder.mkdir(parents=True, exist_ok=True)
        if self._state.exists():
            self._load()
        else:
            self._curve.unlink(missing_ok=True)

    def run(
        self,
        inputs_of: Callable[[int], Sequence[Tensor]],
        loss_of: Callable[..., Numbers],
        said: Callable[..., str] = lambda *others: "",
        show: Callable[[M, int], None] = lambda module, step: None,
    ) -> None:
        """Take the steps that are left.

        Args:
            inputs_of: What a step of the number given is computed from, in host memory.
            loss_of: Computes the loss of such inputs, and what else is said, see `Gradients`.
            said: What to write beside the loss every `LOG_STEPS` steps, of the means of what else is said.
            show: Called with the averaged module after each tenth of the steps.
        """
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        gradients = Gradients(parameters, loss_of, self._plan.device)
        numbers: list[Tensor] = []  # looked at when they are logged: a GPU would be waited for
        begin, saved = time.monotonic() - self._seconds, time.monotonic()
        while self._step < self._plan.steps:
            numbers.append(torch.stack(gradients(*inputs_of(self._step))))
            self._update(parameters)
            self._step += 1
            if self._step % LOG_STEPS == 0 or self._step == self._plan.steps:
                loss, *others = torch.stack(numbers).double().mean(dim=0).tolist()
                numbers.clear()
                self._seconds = time.monotonic() - begin
                self._log(loss, said(*others))
            if self._step % max(1, self._plan.steps // 10) == 0:
                show(self.averaged, self._step)
            if time.monotonic() - saved > SAVE_SECONDS or self._step == self._plan.steps:
                self._seconds = time.monotonic() - begin
                self._save()
                saved = time.monotonic()

    def _update(self, parameters: Sequence[nn.Parameter]) -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
        # torch's AveragedModel would read its count of steps back from a GPU, and wait for it.
        with torch.no_grad():
            averages: list[Tensor] = list(self.averaged.parameters())
            weights: list[Tensor] = list(self.module.parameters())
            torch._foreach_lerp_(averages, weights, share_of_weights(self._step))

    def _log(self, loss: float, said: str) -> None:
        rate = self._schedules[0].get_last_lr()[0]
        print(f"{self._seconds:7.0f} s  step {self._step:6d}  loss {loss:.4f}  rate {rate:.1e}  {said}", flush=True)
        new = not self._curve.exists()
        with self._curve.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["seconds", "step", "loss", "rate"])
            writer.writerow([round(self._seconds), self._step, f"{loss:.5f}", f"{rate:.2e}"])

    def _parts(self) -> list[_Stateful]:
        return [self.module, self.averaged, *self._optimizers, *self._schedules]

    def _save(self) -> None:
        state = {"parts": [part.state_dict() for part in self._parts()], "step": self._step, "seconds": self._seconds}
        state |= {"plan": self._said_plan(), "version": _VERSION}
        unfinished = self._state.with_suffix(".new")
        torch.save(state, unfinished)
        unfinished.replace(self._state)

    def _load(self) -> None:
        state = torch.load(self._state, weights_only=True, map_location=self._plan.device)
        if state.get("version") != _VERSION or state["plan"] != self._said_plan():
            raise ValueError(
                f"{self._state.parent} holds a training of {state['plan']}, version {state.get('version')}; "
                f"asked for is {self._said_plan()}, version {_VERSION}; name another folder"
            )
        for part, values in zip(self._parts(), state["parts"], strict=True):
            part.load_state_dict(values)
        self._step, self._seconds = state["step"], state["seconds"]
        self._forget_later_rows()
        print(f"goes on at step {self._step} of {self._plan.steps}", flush=True)

    def _said_plan(self) -> dict[str, float]:
        """What must be the same for a training to go on; it may do so on another device."""
        return {name: value for name, value in asdict(self._plan).items() if name != "device"}

    def _forget_later_rows(self) -> None:
        """Steps that were taken after the state was saved are taken once more: their rows go."""
        if not self._curve.exists():
            return
        heading, *lines = self._curve.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if int(line.split(",")[1]) <= self._step]
        self._curve.write_text("\n".join([heading, *kept]) + "\n", encoding="utf-8")
