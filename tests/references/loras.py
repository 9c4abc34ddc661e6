"""Adapters of the embedded model, and checkpoints that have them in their weights: what pictures are compared with.

What they add is exact in float32, whatever the order in which it is summed: small whole numbers over powers of two. So
a picture with an adapter and that of the checkpoint must have the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from max_zimage.embedded import PATH

FloatArray = npt.NDArray[np.float32]

RANK = 2
STYLE = ("layers.0.attention.to_k", "layers.1.attention.to_out.0", "layers.3.feed_forward.w2")
"""Modules of the step graph, one of them a part of what is stacked."""
BLOCKS = (
    "noise_refiner.0.attention.to_q",
    "noise_refiner.0.feed_forward.w3",
    "layers.0.attention.to_k",
    "layers.1.attention.to_out.0",
    "layers.2.attention.to_v",
    "layers.3.feed_forward.w2",
    "layers.4.feed_forward.w1",
)
"""Modules of the step graph, one of each kind."""
EVERYWHERE = (
    "layers.2.attention.to_q",
    "layers.4.adaLN_modulation.0",
    "cap_embedder.1",
    "context_refiner.0.attention.to_v",
)
"""Modules of all three graphs of the transformer."""
TEXT = ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj")
"""Modules of the text encoder."""
LAST = ("layers.3.self_attn.o_proj",)
"""One of its last layer, which only another hidden state than the usual one needs."""


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, and what it adds to which tensors at scale 1.

    Attributes:
        path: Its file.
        deltas: Component -> tensor of the embedded model's files -> what is added to it.
    """

    path: Path
    deltas: Mapping[str, Mapping[str, FloatArray]]


def write_adapter(
    path: Path, transformer: tuple[str, ...] = (), text_encoder: tuple[str, ...] = (), *, seed: int = 1
) -> Adapter:
    """Write an adapter in diffusers' spelling, of random numbers.

    Args:
        path: Where to.
        transformer: Modules of the transformer.
        text_encoder: Modules of the text encoder.
        seed: Of its numbers.
    """
    random, tensors = np.random.default_rng(seed), dict[str, torch.Tensor]()
    deltas: dict[str, dict[str, FloatArray]] = {}
    for component, modules in (("transformer", transformer), ("text_encoder", text_encoder)):
        shapes = {name: tuple(tensor.shape) for name, tensor in _state(component).items()}
        for module in modules:
            weight = f"{'model.' if component == 'text_encoder' else ''}{module}.weight"
            rows, columns = shapes[weight]
            down, up = (
                (random.integers(-3, 4, size) / 16).astype(np.float32) for size in ((RANK, columns), (rows, RANK))
            )
            tensors[f"{component}.{module}.lora_A.weight"] = torch.from_numpy(down)
            tensors[f"{component}.{module}.lora_B.weight"] = torch.from_numpy(up)
            deltas.setdefault(component, {})[weight] = up @ down
    save_file(tensors, path)
    return Adapter(path, deltas)


def write_wide(path: Path) -> Path:
    """Write an adapter in the original's naming, of more ranks than a panel of the kernels has."""
    random, tensors = np.random.default_rng(3), dict[str, torch.Tensor]()
    for name, outputs in (("layers.0.attention.qkv", 768), ("layers.5.feed_forward.w3", 682)):
        down, up = (random.standard_normal(shape) / 40 for shape in ((40, 256), (outputs, 40)))
        tensors[f"diffusion_model.{name}.lora_down.weight"] = torch.from_numpy(down.astype(np.float32))
        tensors[f"diffusion_model.{name}.lora_up.weight"] = torch.from_numpy(up.astype(np.float32))
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(20.0)
    save_file(tensors, path)
    return path


def write_checkpoint(folder: Path, *scaled: tuple[Adapter, float]) -> Path:
    """The embedded model with adapters in its weights, summed and then added, in float32."""
    shutil.copytree(PATH, folder)
    for component in ("transformer", "text_encoder"):
        state = _state(component)
        for name, weight in state.items():
            parts = [
                torch.from_numpy(np.float32(scale) * each.deltas[component][name])
                for each, scale in scaled
                if name in each.deltas.get(component, {})
            ]
            state[name] = weight + sum(parts[1:], parts[0]) if parts else weight
        save_file(state, _file(folder, component))
    return folder


def _state(component: str) -> dict[str, torch.Tensor]:
    return {name: numbers.float() for name, numbers in load_file(_file(PATH, component)).items()}


def _file(folder: Path, component: str) -> Path:
    (file,) = (folder / component).glob("*.safetensors")
    return file
