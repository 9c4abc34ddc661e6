"""What writing text needs from a model: three calls.

`encode` reads prompts, `denoise` looks at a canvas once, `commit` makes a finished canvas part of what was read. Host
values are numpy arrays; the cache and the processed logits stay where the graphs run, and nobody looks into them.
Reference: transformers models/diffusion_gemma/generation_diffusion_gemma.py, DiffusionGemmaGenerationMixin.generate.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
DeviceLogits: TypeAlias = Any
"""Processed logits of a canvas, [rows, canvas, vocabulary], on the device."""
DeviceCache: TypeAlias = Any
"""Keys and values of everything that was read, with the length of each row. Never changed: `commit` returns another."""


class CanvasLook(NamedTuple):
    """What one denoising step says of a canvas."""

    logits: DeviceLogits
    """z: softcapped logits divided by the temperature; on the device, for the next step's self-conditioning."""
    argmax: Ids
    """The likeliest token of each position, int64 [rows, canvas]."""
    top_probabilities: NDArray[np.float32]
    """Probabilities of the likeliest tokens over the whole vocabulary, falling; float32 [rows, canvas, top], where top
    is the smaller of 64 and the vocabulary's size. They sum to one only where the rest of the vocabulary has none."""
    top_tokens: Ids
    """Their tokens, int64 [rows, canvas, top]."""
    entropy: NDArray[np.float32]
    """Entropy over the whole vocabulary, natural logarithm, float32 [rows, canvas]."""


class DiffusionSteps(Protocol):
    """A model that can be asked for the three steps of block diffusion."""

    @property
    def vocab_size(self) -> int:
        """Tokens there are, special ones included."""

    @property
    def canvas_length(self) -> int:
        """Tokens of a canvas."""

    @property
    def max_length(self) -> int:
        """Positions there are: a row's prompt and all its canvases must not be longer."""

    def encode(self, ids: Ids, lengths: Ids) -> DeviceCache:
        """Read prompts.

        Args:
            ids: int64 [rows, longest]; what stands behind a row's length is not read.
            lengths: int64 [rows], from 1 to longest.

        Raises:
            ValueError: If a length or an id is out of range.
        """

    def denoise(
        self,
        canvas: Ids,
        sc_logits: DeviceLogits | None,
        sc_enabled: NDArray[np.bool_],
        temperature: float,
        cache: DeviceCache,
    ) -> CanvasLook:
        """Look at a canvas once, behind what was read. The cache stays as it is.

        Args:
            canvas: int64 [rows, canvas_length].
            sc_logits: The last step's `CanvasLook.logits`; None in a canvas's first step.
            sc_enabled: bool [rows]: which rows see them. Without logits no row does, whatever stands here.
            temperature: What the softcapped logits are divided by, above 0.
            cache: What was read.

        Raises:
            ValueError: If shapes do not fit the cache, an id or the temperature is out of range, or positions run out.
        """

    def commit(self, cache: DeviceCache, ids: Ids) -> DeviceCache:
        """Read a finished canvas: the cache that holds it, too.

        Args:
            cache: What was read before.
            ids: int64 [rows, canvas_length].

        Raises:
            ValueError: As with `encode`, and if positions run out.
        """
