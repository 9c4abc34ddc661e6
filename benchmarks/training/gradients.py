"""The gradients of a step: computed operation by operation on a CPU, replayed as one CUDA graph on a GPU.

A step is thousands of operations that take a GPU microseconds each. Started one by one, they wait for the processor;
recorded once for every set of input shapes, they are started all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Numbers = tuple[Tensor, ...]
"""The loss, and what else is said about a step: scalars where the step is computed."""

_WARM_UPS = 3
"""Steps before a recording: libraries choose their kernels and workspaces in the first ones, and the first of all makes
the gradients, which therefore are in no recording's own memory."""


@dataclass(frozen=True, kw_only=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    numbers: Numbers


class Gradients:
    """Fills the gradients of parameters, step by step."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], loss_of: Callable[..., Numbers], device: str | torch.device
    ) -> None:
        """Begin.

        Args:
            parameters: Get the gradients; on a GPU these stay the same tensors from the first step on.
            loss_of: From inputs on the device to numbers there, the loss first. It reaches the same parameters whatever
                the shapes. On a GPU it is called for the first step of each set of shapes only, may neither wait for
                the device nor move anything to or from it, and what else it reads stays where it is in memory.
            device: Where to compute, as torch names it.
        """
        self._parameters, self._loss_of, self._device = parameters, loss_of, torch.device(device)
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    def __call__(self, *inputs: Tensor) -> Numbers:
        """Put the gradients of one step in place of those of the step before.

        Args:
            inputs: In host memory.

        Returns:
            The step's numbers, copies that later steps do not overwrite.
        """
        if self._device.type != "cuda":
            for parameter in self._parameters:
                parameter.grad = None
            return self._compute([values.to(self._device) for values in inputs])
        shapes = tuple(values.shape for values in inputs)
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(inputs)
        recording = self._recordings[shapes]
        for recorded, values in zip(recording.inputs, inputs, strict=True):
            recorded.copy_(values.pin_memory(), non_blocking=True)
        recording.graph.replay()
        return tuple(number.clone() for number in recording.numbers)

    def _compute(self, inputs: Sequence[Tensor]) -> Numbers:
        numbers = self._loss_of(*inputs)
        numbers[0].backward()
        return tuple(number.detach() for number in numbers)

    def _compute_in_place(self, inputs: Sequence[Tensor]) -> Numbers:
        """As `_compute`, but into the gradients that are there, which all recordings share."""
        if gradients := [parameter.grad for parameter in self._parameters if parameter.grad is not None]:
            torch._foreach_zero_(gradients)
        return self._compute(inputs)

    def _record(self, inputs: Sequence[Tensor]) -> _Recording:
        static = [values.to(self._device) for values in inputs]
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._compute_in_place(static)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            numbers = self._compute_in_place(static)
        return _Recording(graph=graph, inputs=static, numbers=numbers)
