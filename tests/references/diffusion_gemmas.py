"""Tiny DiffusionGemmas of random weights, written to disk and run by transformers: what the engine is compared with.

Fresh weights would hide faults: norms, scales and layer scalars of one, a router that finds all experts alike. So all
of them are drawn, and the router's scores spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextRouter,
)

from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma

VISION: Mapping[str, object] = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 16,
    "pooling_kernel_size": 1,
}
"""transformers builds a tower in any case, so that there has to be one."""

USUAL: Mapping[str, object] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 32,
    "global_head_dim": 64,
    "num_experts": 8,
    "top_k_experts": 2,
    "sliding_window": 64,
    "max_position_embeddings": 2048,
}
"""The default pattern of layers, and sizes that kernels like."""

ODD: Mapping[str, object] = {
    "vocab_size": 50,
    "hidden_size": 36,
    "intermediate_size": 20,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "num_global_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 16,
    "num_experts": 5,
    "top_k_experts": 3,
    "sliding_window": 7,
    "max_position_embeddings": 64,
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"],
    "final_logit_softcapping": 5.0,
    "rms_norm_eps": 1e-5,
}
"""A vocabulary below 64, heads that fill no vector, a full layer first, a softcap and an epsilon of its own.

transformers multiplies by experts whose rows are whole 16 bytes alone.
"""


def write(directory: Path, text: Mapping[str, object], canvas_length: int, seed: int) -> None:
    """Write a checkpoint of random weights in float32."""
    torch.manual_seed(seed)
    config = DiffusionGemmaConfig(text_config=dict(text), vision_config=dict(VISION), canvas_length=canvas_length)
    model = DiffusionGemmaForBlockDiffusion(config)
    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            if "vision" in name:
                continue
            if name.endswith(("norm.weight", "_1.weight", "_2.weight", ".scale", "per_expert_scale", "layer_scalar")):
                values.copy_(0.75 + 0.5 * torch.rand_like(values))
            elif name.endswith("router.proj.weight"):  # once: encoder and decoder have the same
                values.mul_(40)
            elif name.endswith("embed_tokens.weight"):  # a row of zeros for padding is sent to all experts alike
                values[0] = values[1:].roll(1, dims=0)[0]
    model.save_pretrained(directory)


def load(directory: Path) -> DiffusionGemmaForBlockDiffusion:
    """Transformers' model of a checkpoint, in float32."""
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


class Routing:
    """How far each choice of experts was from another one, while transformers ran: a difference of router scores."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        self.gaps: list[NDArray[np.float32]] = []
        for module in model.modules():
            if isinstance(module, DiffusionGemmaTextRouter):
                module.register_forward_hook(self._note)

    def _note(self, module: Any, given: Any, result: Any) -> None:
        ordered = result[0].log().sort(dim=-1, descending=True).values
        count = module.config.top_k_experts
        self.gaps.append((ordered[..., count - 1] - ordered[..., count]).detach().numpy())

    def smallest(self) -> float:
        """The smallest of them since the last call, over all tokens and layers."""
        least = min(float(each.min()) for each in self.gaps)
        self.gaps.clear()
        return least


class Both(NamedTuple):
    """The engine and the reference, of one checkpoint.

    Attributes:
        directory: The checkpoint.
        ours: The engine, on a CPU in float32.
        theirs: transformers' model.
        routing: Of the reference.
    """

    directory: Path
    ours: CompiledDiffusionGemma
    theirs: DiffusionGemmaForBlockDiffusion
    routing: Routing


def pair(directory: Path, text: Mapping[str, object], canvas_length: int, seed: int) -> Both:
    """Write a checkpoint, and load it on both sides."""
    write(directory, text, canvas_length, seed)
    return opened(directory)


def opened(directory: Path) -> Both:
    """Load a checkpoint on both sides."""
    theirs = load(directory)
    return Both(directory, CompiledDiffusionGemma.from_pretrained(directory, device="cpu"), theirs, Routing(theirs))
