"""The graphs of the registry that read and write text: those of a DiffusionGemma."""

from __future__ import annotations

from max_zimage.compile.entry import Entry
from max_zimage.graphs.diffusion_gemma.stack import Denoise, Read

GEMMA: tuple[Entry, ...] = (
    Entry(
        name="gemma_read",
        component="diffusion_gemma",
        make=Read,
        label="DiffusionGemma, reading",
        runs="when text is written: once per prompt, and between two canvases",
    ),
    Entry(
        name="gemma_denoise",
        component="diffusion_gemma",
        make=Denoise,
        label="DiffusionGemma, denoising steps",
        runs="when text is written: once per denoising step of a canvas",
    ),
)
"""Of `max_zimage.compile.registry.GRAPHS`."""
