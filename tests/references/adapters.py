"""Adapters for the embedded model, in every spelling, and what they add as plain matrices in float64.

Nothing here knows how the engine reads them: modules are renamed by replacing words, and products are numpy's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from max_zimage.checkpoint.adapters import Adapter, added, open_adapter
from max_zimage.checkpoint.config import ModelSpecs, model_specs
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.locate import CONFIG_FILES, read_config
from max_zimage.checkpoint.tensors import Files, Source
from max_zimage.embedded import PATH
from tests.references.tiny import StateDict, original_transformer

FloatArray = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
QKV = ("to_q", "to_k", "to_v")
FILES = {"transformer": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}


@cache
def specs() -> ModelSpecs:
    """The embedded model's."""
    return model_specs(**{name: read_config(PATH, name) for name in CONFIG_FILES})


@cache
def state(component: str = "transformer") -> StateDict:
    """The embedded model's tensors in float32, as diffusers and transformers name them."""
    return {name: values.float() for name, values in load_file(PATH / component / FILES[component]).items()}


def source(component: str = "transformer") -> Source:
    """The embedded model's files."""
    return open_source([PATH / component / FILES[component]])


def original_source(folder: Path) -> Source:
    """The embedded transformer in the original naming, with query, key and value in one."""
    file = folder / "original.safetensors"
    if not file.is_file():
        stored = load_file(PATH / "transformer" / FILES["transformer"])
        save_file({name: values.contiguous() for name, values in original_transformer(stored).items()}, file)
    return open_source([file])


def linears(component: str = "transformer") -> list[str]:
    """Every module of a component that has a matrix, the embedding of words excepted."""
    suffix = ".weight"
    found = [name for name, values in state(component).items() if name.endswith(suffix) and values.ndim == 2]
    return [name.removesuffix(suffix) for name in found if "embed_tokens" not in name and "lm_head" not in name]


@dataclass(frozen=True)
class Factors:
    """A LoRA.

    Attributes:
        down: Module, in diffusers' naming -> float32 [rank, inputs].
        up: Module -> float32 [outputs, rank].
    """

    down: Mapping[str, torch.Tensor]
    up: Mapping[str, torch.Tensor]

    def deltas(self, factor: float = 1.0) -> dict[str, Matrix]:
        """What it adds to every module, in float64."""
        return {name: factor * self.up[name].double().numpy() @ self.down[name].double().numpy() for name in self.down}


def factors(
    rank: int = 3, seed: int = 0, modules: tuple[str, ...] | None = None, component: str = "transformer"
) -> Factors:
    """Random ones; query, key and value of a block have one down, so that they can be written as one module."""
    random = torch.Generator().manual_seed(seed)
    down, up, shared = {}, {}, dict[str, torch.Tensor]()
    for name in linears(component) if modules is None else modules:
        outputs, inputs = state(component)[f"{name}.weight"].shape
        place = re.sub(r"to_[kv]$", "to_q", name)
        if place not in shared:
            shared[place] = torch.randn(rank, inputs, generator=random) * inputs**-0.5
        down[name] = shared[place]
        up[name] = torch.randn(outputs, rank, generator=random) * 0.2
    return Factors(down, up)


def original(module: str) -> str:
    """A transformer's module in the original naming."""
    module = re.sub(r"^all_(x_embedder|final_layer)\.2-1", r"\1", module)
    return re.sub(r"\.to_out\.0$", ".out", module)


def fused(lora: Factors) -> Factors:
    """The same with one module of query, key and value."""
    down, up = {}, {}
    for name in lora.down:
        block = re.sub(r"\.to_q$", "", name)
        if name.endswith(".to_q"):
            down[f"{block}.qkv"] = lora.down[name]
            up[f"{block}.qkv"] = torch.cat([lora.up[f"{block}.{part}"] for part in QKV])
        elif not name.endswith((".to_k", ".to_v")):
            down[name], up[name] = lora.down[name], lora.up[name]
    return Factors(down, up)


def spelled(
    lora: Factors,
    prefix: str,
    suffixes: tuple[str, str],
    *,
    rename: Callable[[str], str] = str,
    underscored: bool = False,
    alpha: float | None = None,
) -> StateDict:
    """A LoRA's file.

    Args:
        lora: The LoRA.
        prefix: Before every name.
        suffixes: Of down and up.
        rename: Of modules.
        underscored: Whether dots become underscores.
        alpha: Written beside every module.
    """
    file = {}
    for module in lora.down:
        name = rename(module)
        stem = prefix + (name.replace(".", "_") if underscored else name)
        file[stem + suffixes[0]], file[stem + suffixes[1]] = lora.down[module].clone(), lora.up[module].clone()
        if alpha is not None:
            file[f"{stem}.alpha"] = torch.tensor(alpha)
    return file


AB = (".lora_A.weight", ".lora_B.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")


def written(file: Path, tensors: StateDict, metadata: dict[str, str] | None = None) -> Adapter:
    """Write an adapter and open it."""
    save_file({name: values.contiguous() for name, values in tensors.items()}, file, metadata)
    return open_adapter(file, specs())


def rows_of(
    name: str, *adapters: tuple[Adapter, float], component: str = "transformer", base: Source | None = None
) -> FloatArray:
    """A tensor of the checkpoint, in the file's rows, with adapters added."""
    tensor = added(adapters, component)(source(component) if base is None else base).tensors[name]
    return tensor.rows(0, tensor.shape[0], Files())


SCALE = 0.7
NEAR = 8e-7
"""Relative to the largest weight: roundings of the product and of the sum."""


def weight(name: str) -> Matrix:
    """A tensor of the transformer."""
    return np.asarray(state()[name].double().numpy())


def random(*shape: int, seed: int = 1, size: float = 0.3) -> torch.Tensor:
    """Numbers of a normal distribution of that size."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def near(found: FloatArray, expected: Matrix) -> None:
    """Hold float32 numbers against exact ones."""
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= NEAR * np.abs(expected).max()


def opened(folder: Path, module: str, parts: Mapping[str, torch.Tensor], prefix: str = "diffusion_model.") -> Adapter:
    """An adapter of one module, by suffix without its first dot."""
    return written(folder / "a.safetensors", {f"{prefix}{module}.{part}": values for part, values in parts.items()})
