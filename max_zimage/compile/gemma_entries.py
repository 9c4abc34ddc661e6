"""The graphs of the registry that read and write text: those of a DiffusionGemma."""

from __future__ import annotations

from max_zimage.compile.entry import Entry
from max_zimage.graphs.diffusion_gemma.stack import Commit, Denoise, Encode

GEMMA: tuple[Entry, ...] = (
    Entry(
        name="gemma_encode",
        component="diffusion_gemma",
        make=Encode,
        label="DiffusionGemma, prompt",
        runs="when text is written: once per prompt",
    ),
    Entry(
        name="gemma_denoise",
        component="diffusion_gemma",
        make=Denoise,
        label="DiffusionGemma, denoising steps",
        runs="when text is written: once per denoising step of a canvas",
    ),
    Entry(
        name="gemma_commit",
        component="diffusion_gemma",
        make=Commit,
        label="DiffusionGemma, finished canvas",
        runs="when text is written: between two canvases",
    ),
)
"""Of `max_zimage.compile.registry.GRAPHS`."""
