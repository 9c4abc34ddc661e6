"""Adapters at the published sizes: opening a file, and loading a block of the transformer with and without one.

The block's weights and the adapters are random and written into a folder that goes away. Matrices are packed, as the
kernels of a CPU take them: a plain load of a bfloat16 file into bfloat16 without that would be no work at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.measure import Row, interleave
from max_zimage.checkpoint.adapters import Adapter, added, open_adapter, opening
from max_zimage.checkpoint.config import ModelSpecs, model_specs
from max_zimage.checkpoint.expand import ParameterSource, transformer_names, weights
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.locate import CONFIG_FILES, read_config
from max_zimage.checkpoint.plan import LoadPlan, ParameterRecipe
from max_zimage.device.dtypes import ModelDtype
from max_zimage.embedded import PATH

_BLOCK = "layers.0."


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the transformer, and of the adapters."""

    dim: int
    num_heads: int
    num_layers: int
    ranks: tuple[int, ...]


FULL = Sizes(dim=3840, num_heads=30, num_layers=30, ranks=(16, 32, 128))
QUICK = Sizes(dim=256, num_heads=2, num_layers=2, ranks=(4,))


def rows(sizes: Sizes, repeats: int) -> list[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        root, specs = Path(folder), _specs(sizes)
        return [*_opening(root, specs, sizes, repeats), *_loading(root, specs, sizes, repeats)]


def _opening(root: Path, specs: ModelSpecs, sizes: Sizes, repeats: int) -> Iterator[Row]:
    """Reading names and shapes, looking for NaN and infinity, and the digest, from a file that is in memory."""
    for rank in sizes.ranks:
        file = root / f"rank{rank}.safetensors"
        write_adapter(file, specs, rank, tuple(f"layers.{index}." for index in range(sizes.num_layers)))
        calls = {"first time": partial(_opened_anew, file, specs), "again": partial(open_adapter, file, specs)}
        timings = interleave(calls, repeats)
        modules = sum(map(len, open_adapter(file, specs).modules.values()))
        for variant, timing in timings.items():
            yield Row(
                case=f"open, rank {rank}",
                variant=variant,
                dtype="bfloat16",
                sizes=f"{modules} modules, {file.stat().st_size / 1e6:.0f} MB",
                timing=timing,
                reference=variant == "first time",
                note=f"{modules} modules, {file.stat().st_size / 1e6:.0f} MB",
            )
        file.unlink()


def _opened_anew(file: Path, specs: ModelSpecs) -> Adapter:
    opening._opened.cache_clear()
    return open_adapter(file, specs)


def _loading(root: Path, specs: ModelSpecs, sizes: Sizes, repeats: int) -> Iterator[Row]:
    adapters = {}
    for rank in sizes.ranks:
        file = root / f"block{rank}.safetensors"
        write_adapter(file, specs, rank, (_BLOCK,))
        adapters[rank] = open_adapter(file, specs)
    cases: tuple[tuple[str, ModelDtype], ...] = (
        ("float32", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "bfloat16"),
    )
    for stored, dtype in cases:
        file = root / f"{stored}.safetensors"
        if not file.is_file():
            _write_block(file, specs, getattr(torch, stored))
        ways = {"plain": _load(file, specs, dtype, None)}
        ways |= {f"rank {rank}": _load(file, specs, dtype, adapter) for rank, adapter in adapters.items()}
        timings = interleave(ways, repeats)
        outputs = sum(_inputs_and_outputs(part) for part in _of_block(specs))
        for variant, timing in timings.items():
            rank = 0 if variant == "plain" else int(variant.split()[1])
            yield Row(
                case=f"load a block, {stored} file, {dtype}",
                variant=variant,
                dtype=dtype,
                sizes=f"dim {sizes.dim}",
                timing=timing,
                gflop=2 * rank * outputs / 1e9 if rank else None,
                reference=variant == "plain",
            )


def _specs(sizes: Sizes) -> ModelSpecs:
    specs = model_specs(**{name: read_config(PATH, name) for name in CONFIG_FILES})
    shape = replace(specs.transformer, dim=sizes.dim, num_heads=sizes.num_heads, num_layers=sizes.num_layers)
    return replace(specs, transformer=shape)


def _parts(specs: ModelSpecs, places: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors of attention and of the feed-forward layers there, as diffusers has them."""
    written = weights(transformer_names(specs.transformer), "diffusers", "")
    parts = {part.name: part.shape for weight in written for part in weight.parts}
    return {name: shape for name, shape in parts.items() if name.startswith(places) and _is_matrix(name)}


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight") and any(word in name for word in (".to_", ".w1.", ".w2.", ".w3."))


def write_adapter(file: Path, specs: ModelSpecs, rank: int, places: tuple[str, ...]) -> None:
    """Write an adapter of random numbers for the matrices of the blocks whose names begin so."""
    tensors = {}
    for name, (outputs, inputs) in _parts(specs, places).items():
        stem = f"transformer.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = (torch.randn(rank, inputs) * inputs**-0.5).bfloat16()
        tensors[f"{stem}.lora_B.weight"] = (torch.randn(outputs, rank) * 0.01).bfloat16()
    save_file(tensors, file)


def _write_block(file: Path, specs: ModelSpecs, dtype: torch.dtype) -> None:
    shapes = {part.name: part.shape for weight in _of_block(specs) for part in weight.parts}
    save_file({name: (torch.randn(shape) * 0.02).to(dtype) for name, shape in shapes.items()}, file)


def _of_block(specs: ModelSpecs) -> list[ParameterSource]:
    written = weights(transformer_names(specs.transformer), "diffusers", "")
    return [weight for weight in written if weight.engine.startswith(_BLOCK) and len(weight.parts[0].shape) == 2]


def _inputs_and_outputs(weight: ParameterSource) -> int:
    return sum(part.shape[0] * part.shape[1] for part in weight.parts)


def _load(file: Path, specs: ModelSpecs, dtype: ModelDtype, adapter: Adapter | None) -> Callable[[], object]:
    """Load the block's matrices, from the file to what a CPU's kernels take."""

    def run() -> object:
        source = open_source([file])
        if adapter is not None:
            source = added([(adapter, 0.8)], "transformer")(source)
        recipes = []
        for weight in _of_block(specs):
            parts = tuple(source.tensors[part.name] for part in weight.parts)
            shape = sum(part.shape[0] for part in parts), parts[0].shape[1]
            heads = weight.rotary_heads, weight.head_dim
            recipes.append(ParameterRecipe(weight.engine, parts, weight.layout, shape, *heads, weight.packing))
        return load(LoadPlan("transformer", "", (file,), tuple(recipes), {}), dtype, to_pack=True)

    return run
