"""The text model with transformers' network in place of compiled graphs: for tests of what stands around these."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion

from max_zimage import embedded
from max_zimage.diffusion_gemma.prepared import PreparedText
from max_zimage.diffusion_gemma.text_diffusion import TextDiffusion
from tests.references.text_steps import TransformersSteps


@cache
def reference_model(directory: Path = embedded.TEXT_PATH) -> DiffusionGemmaForBlockDiffusion:
    """Of a checkpoint, float32."""
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(directory, dtype=torch.float32)
    model.set_experts_implementation("eager")
    return model.eval()


def in_pytorch(prepared: PreparedText, device: str = "cpu", *, dtype: str = "auto") -> TextDiffusion:
    """In place of `TextDiffusion.from_prepared`."""
    return TextDiffusion(prepared, TransformersSteps(reference_model(prepared.directory)))
