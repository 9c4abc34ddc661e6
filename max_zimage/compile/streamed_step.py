"""A step whose main layers come one after another: several compiled graphs, called as the one of a plain step is.

    start -> main layer, with the weights of each in turn -> end

See `graphs.step.streamed`; the weights are handed out by `max_zimage.device.offload.Blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from max.driver import Buffer

from max_zimage.compile.compiler import CompiledGraph
from max_zimage.device.offload import Weights
from max_zimage.graphs.step.inputs import PredictInputs
from max_zimage.graphs.step.streamed import ProjectInputs, StreamedBlock

_ROWS = 4  # of the modulation, for each layer


class StreamedStep:
    """One evaluation and its update, with the arguments and results of `graphs.step.compose.denoise_step`.

    Args:
        start: Compiled `StreamedStart`; its call brings the component's weights where they are away.
        block: Compiled `StreamedBlock`.
        end: Compiled `streamed_end`.
        kind: What `block` was compiled from.
        weights: Gives the weights of all layers in order.
    """

    def __init__(
        self,
        start: CompiledGraph,
        block: CompiledGraph,
        end: CompiledGraph,
        kind: StreamedBlock,
        weights: Callable[[], Iterable[Weights]],
    ) -> None:
        self._start, self._block, self._end = start, block, end
        self._weights, self._is_ragged = weights, kind.is_ragged
        self._rows = _ROWS + 1 if kind.is_fused else _ROWS  # a fused one makes the next one's first norm

    @property
    def graphs(self) -> tuple[CompiledGraph, ...]:
        """What is called, in order."""
        return self._start, self._block, self._end

    def __call__(self, *inputs: Buffer) -> list[Buffer]:
        """Run the layers in order; nothing is waited for but weights that are read on a CPU."""
        count = len(PredictInputs._fields)
        given, behind = PredictInputs(*inputs[:count]), inputs[count:]
        *tokens, table = self._start(*given)
        extent, length = given.offsets if self._is_ragged else given.valid_length, int(table.shape[0])
        for layer, weights in enumerate(self._weights()):
            rows = table[_ROWS * layer : min(_ROWS * layer + self._rows, length), :, :]
            tokens = self._block(*tokens, given.rope, extent, rows, *weights)
        return self._end(*ProjectInputs(given.latents, tokens[0], given.final_scale), *behind)
