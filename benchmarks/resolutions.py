"""One transformer block at the real width over picture sizes: what grows with the tokens, what with their square.

    image tokens 256 to 4096 and a caption of 64 -> seconds of a block, ours and diffusers', float32
    seconds = a + b·tokens + c·tokens², none of them negative, fitted over all sizes
    counted work: products with weights are linear in the tokens, attention is quadratic

The denoising step is 32 such blocks at these widths, two of them without the caption, and little else.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from max.driver import Buffer

from benchmarks.block import (
    Shape,
    compiled_block,
    diffusers_call,
    engine_inputs,
    random_block,
    random_inputs,
)
from benchmarks.machine import as_torch
from benchmarks.measure import Row, Timing, interleave, max_abs, relative_l2
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.sampling.positions import PIXELS_PER_TOKEN, padded

CAPTION_TOKENS = 64
EAGER, OURS = "diffusers", "ours"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured.

    Attributes:
        shape: Of the block; its number of tokens is not used.
        calls: Side of the picture in pixels -> at most so many timed calls.
    """

    shape: Shape
    calls: Mapping[int, int]

    def at(self, side: int) -> Shape:
        """The block over the tokens of a picture and a caption."""
        return replace(self.shape, tokens=padded((side // PIXELS_PER_TOKEN) ** 2) + CAPTION_TOKENS)


_SPEC = FULL_MODEL.transformer
FULL = Setting(
    shape=Shape(dim=_SPEC.dim, num_heads=_SPEC.num_heads, ffn_dim=_SPEC.ffn_dim, norm_eps=_SPEC.norm_eps, tokens=0),
    calls={256: 10, 512: 10, 768: 5, 1024: 3},
)
QUICK = Setting(
    shape=Shape(dim=256, num_heads=2, ffn_dim=682, norm_eps=1e-5, tokens=0), calls={64: 1, 128: 1, 256: 1, 384: 1}
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Seconds of a call over n tokens, `constant` + `linear`·n + `quadratic`·n²; none is negative."""

    constant: float
    linear: float
    quadratic: float

    @classmethod
    def of(cls, tokens: Sequence[int], seconds: Sequence[float]) -> Fit:
        """Fit with the least sum of squares of relative errors.

        A term that would come out negative is left out: of all choices of terms the best one without negatives is
        taken, which is what non-negative least squares gives.

        Args:
            tokens: Of each measurement, at least three of them different.
            seconds: Of each measurement.

        Raises:
            ValueError: If there are fewer than three numbers of tokens.
        """
        if len(set(tokens)) < 3:
            raise ValueError(f"a fit of three terms needs three numbers of tokens, got {sorted(set(tokens))}")
        sizes, measured = np.asarray(tokens, np.float64), np.asarray(seconds, np.float64)
        # Scaled to numbers near 1, so that squares of thousands of tokens lose nothing.
        largest = sizes.max()
        terms = np.stack([(sizes / largest) ** power for power in range(3)], axis=1) / measured[:, None]
        best, error = np.zeros(3), np.inf
        for count in (1, 2, 3):
            for chosen in map(list, combinations(range(3), count)):
                factors = np.linalg.lstsq(terms[:, chosen], np.ones(len(sizes)), rcond=None)[0]
                rest = float(np.sum((terms[:, chosen] @ factors - 1) ** 2))
                if factors.min() >= 0 and rest < error:
                    best, error = np.zeros(3), rest
                    best[chosen] = factors
        constant, linear, quadratic = (float(factor) / largest**power for power, factor in enumerate(best))
        return cls(constant=constant, linear=linear, quadratic=quadratic)

    def seconds(self, tokens: int) -> float:
        """What the fit says of a call."""
        return self.constant + self.linear * tokens + self.quadratic * tokens**2

    def shares(self, tokens: int) -> tuple[float, float, float]:
        """Of the constant, the linear and the quadratic term; their sum is 1."""
        parts = self.constant, self.linear * tokens, self.quadratic * tokens**2
        constant, linear, quadratic = (part / self.seconds(tokens) for part in parts)
        return constant, linear, quadratic


def rows(setting: Setting, repeats: int, roofs: dict[str, float]) -> list[Row]:
    """Measure every size; the fits are over all of them."""
    block = random_block(setting.shape)
    graph = compiled_block(setting.shape, block, "float32")
    compile_seconds: float | None = graph.seconds
    measured: list[Row] = []
    with torch.inference_mode():
        for side, calls in setting.calls.items():
            shape = setting.at(side)
            inputs = random_inputs(shape)
            theirs = diffusers_call(block, inputs, torch.float32)
            ours = functools.partial(graph, *engine_inputs(shape, block, inputs, "float32"))
            measured += _rows_of_size(side, shape, theirs, ours, min(calls, repeats), compile_seconds, roofs)
            compile_seconds = None
            del inputs, theirs, ours
            gc.collect()
    return with_fits(measured, {f"block {side}x{side}": setting.at(side) for side in setting.calls})


def _rows_of_size(
    side: int,
    shape: Shape,
    theirs: Callable[[], torch.Tensor],
    ours: Callable[[], Sequence[Buffer]],
    repeats: int,
    compile_seconds: float | None,
    roofs: dict[str, float],
) -> list[Row]:
    expected, actual = theirs().numpy(), as_torch(ours()[0]).numpy()
    error, largest = relative_l2(actual, expected), max_abs(actual, expected)
    calls: dict[str, Callable[[], object]] = {EAGER: theirs, OURS: ours}
    return [
        Row(
            case=f"block {side}x{side}",
            variant=name,
            dtype="float32",
            sizes=shape.sizes,
            timing=timing,
            compile_seconds=compile_seconds if name == OURS else None,
            gflop=shape.gflop,
            roof=roofs.get("float32"),
            max_abs=largest if name == OURS else None,
            relative_l2=error if name == OURS else None,
            reference=name == EAGER,
        )
        for name, timing in interleave(calls, repeats, warmups=0).items()
    ]


def with_fits(measured: Sequence[Row], shapes: Mapping[str, Shape]) -> list[Row]:
    """Say in every row's note how its time divides, by the fit and by the count of operations.

    Args:
        measured: Rows with timings.
        shapes: Of every case.
    """
    fits = {
        name: Fit.of(
            [shapes[row.case].tokens for row in measured if row.variant == name],
            [_timing(row).median for row in measured if row.variant == name],
        )
        for name in dict.fromkeys(row.variant for row in measured)
    }
    return [replace(row, note=_note(fits[row.variant], shapes[row.case])) for row in measured]


def _note(fit: Fit, shape: Shape) -> str:
    constant, linear, quadratic = fit.shares(shape.tokens)
    counted = shape.attention_gflop / shape.gflop
    return (
        f"fit {fit.seconds(shape.tokens):.3g} s: constant {constant:.1%}, linear {linear:.1%}, "
        f"quadratic {quadratic:.1%}; of the operations linear {1 - counted:.1%}, quadratic {counted:.1%}"
    )


def _timing(row: Row) -> Timing:
    if row.timing is None:
        raise ValueError(f"{row.case}, {row.variant} has no timing")
    return row.timing
