"""Four pictures under different adapters: together, each row with low-rank products of its own, and set by set.

The embedded model on a CPU. Adapters change all matrices of the noise refiner and the main layers. A call is from
prompts to latents; set by set, each begins with its adapter added to the weights and the one before taken away. What
is compiled is compiled before. Steps are the denoising with what comes once before it, captions and tables, and with
adapters there. Products are those of one block at the published widths.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from max.driver import Buffer
from max.dtype import DType
from max.graph import DeviceRef, TensorType

from benchmarks.adapters import write_adapter
from benchmarks.additions import Sizes as PictureSizes
from benchmarks.additions import inputs_of
from benchmarks.measure import Row, interleave
from max_zimage import ZImagePipeline
from max_zimage.checkpoint.layout import packed
from max_zimage.checkpoint.names import Packing
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.device.dtypes import DTYPES, ModelDtype, bfloat16_bits
from max_zimage.graphs import ops
from max_zimage.graphs.adapted_ops import adapted_linear
from max_zimage.pipeline.batch import ZImageModelInputs
from max_zimage.pipeline.mixed_adapters import mixed_of
from tests.references.op_modules import Op, Typed, compile_ops

PROMPTS = ["a red star", "a blue ring on green", "a green square", "a small white circle on black"]
SET_BY_SET, TOGETHER = "set by set", "together"
_WIDE = FULL_MODEL.transformer
MATRICES: Mapping[str, tuple[int, int, Packing]] = {
    "qkv": (_WIDE.dim, 3 * _WIDE.dim, "panels"),
    "out": (_WIDE.dim, _WIDE.dim, "panels"),
    "w13": (_WIDE.dim, 2 * _WIDE.ffn_dim, "gated"),
    "w2": (_WIDE.ffn_dim, _WIDE.dim, "panels"),
}
"""A block's at the published widths: inputs, outputs, and how it is packed."""
Parts = tuple[Buffer, Buffer, Buffer]
"""Down, up and which, as `adapted_linear` takes them."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sides of the pictures, their steps, the adapters' ranks, and tokens of a picture at the published widths."""

    sides: tuple[int, ...]
    steps: int
    ranks: tuple[int, ...]
    tokens: int


FULL = Sizes(sides=(128, 256), steps=8, ranks=(8, 32), tokens=320)
QUICK = Sizes(sides=(64,), steps=2, ranks=(8,), tokens=32)


def rows(sizes: Sizes, repeats: int) -> list[Row]:
    """Measure."""
    pipeline = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        made = {rank: _adapters(Path(folder), pipeline, rank) for rank in sizes.ranks}
        for side in sizes.sides:
            for rank, files in made.items():
                found += _calls(pipeline, side, sizes.steps, f"rank {rank}", files, repeats)
            found += _steps(pipeline, side, sizes.steps, made, repeats)
    for dtype in DTYPES:
        found += _products(dtype, sizes, repeats)
    return found


def _adapters(folder: Path, pipeline: ZImagePipeline, rank: int) -> list[Path]:
    spec = pipeline.transformer.spec
    places = tuple(f"layers.{index}." for index in range(spec.num_layers))
    places += tuple(f"noise_refiner.{index}." for index in range(spec.num_refiner_layers))
    files = [folder / f"{rank}-{index}.safetensors" for index in range(len(PROMPTS))]
    for file in files:
        write_adapter(file, pipeline.sources.specs, rank, places)
    return files


def _calls(
    pipeline: ZImagePipeline, side: int, steps: int, rank: str, files: Sequence[Path], repeats: int
) -> Iterator[Row]:
    """Four pictures under four adapters and under two, and under one, which is in the weights in both ways."""
    shape: dict[str, Any] = {"height": side, "width": side, "num_inference_steps": steps, "seed": 1}
    shape |= {"guidance_scale": 0.0, "output_type": "latent"}

    def set_by_set(count: int) -> None:
        share = len(PROMPTS) // count
        for index in range(count):
            pipeline(PROMPTS[index * share : (index + 1) * share], **shape, loras=[files[index]])

    def together(count: int) -> None:
        share = len(PROMPTS) // count
        pipeline(PROMPTS, **shape, loras=[[files[index // share]] for index in range(len(PROMPTS))])

    for count in (4, 2):
        calls: dict[str, Callable[[], object]] = {
            SET_BY_SET: partial(set_by_set, count),
            TOGETHER: partial(together, count),
        }
        for variant, timing in interleave(calls, repeats).items():
            yield Row(
                case=f"{side}x{side}, {count} adapters of {rank}",
                variant=variant,
                dtype="float32",
                sizes=f"4 pictures, {steps} steps",
                timing=timing,
                reference=variant == SET_BY_SET,
            )


def _steps(pipeline: ZImagePipeline, side: int, steps: int, made: dict[int, list[Path]], repeats: int) -> Iterator[Row]:
    """Captions and denoising of four rows: in the plain graph, and in the one with low-rank parts."""
    plain = inputs_of(pipeline, PictureSizes(side=side, steps=steps), {"prompt": PROMPTS, "guidance_scale": 0.0})
    specs, transformer = pipeline.sources.specs, pipeline.transformer
    given: dict[str, ZImageModelInputs] = {"in the weights": plain}
    for rank, files in made.items():
        sets = [(pipeline.loras_by_prompt([[file]]) or ((),))[0] for file in files]
        given[f"rank {rank}, one of four"] = replace(plain, mixed=mixed_of([sets[0], (), (), ()], specs, transformer))
        given[f"rank {rank}, all four"] = replace(plain, mixed=mixed_of(sets, specs, transformer))

    def denoise(inputs: ZImageModelInputs) -> None:
        pipeline.denoising(inputs).run()

    calls: dict[str, Callable[[], object]] = {name: partial(denoise, inputs) for name, inputs in given.items()}
    for name, timing in interleave(calls, repeats).items():
        yield Row(
            case=f"{side}x{side}, steps of four together",
            variant=name,
            dtype="float32",
            sizes=f"4 pictures, {steps} steps",
            timing=timing,
            reference=name == "in the weights",
        )


def _products(dtype: ModelDtype, sizes: Sizes, repeats: int) -> Iterator[Row]:
    """All products of one block at the published widths, of two rows with parts of their own."""
    kind = DType[dtype]
    models = compile_ops(_makers(kind), dtype)
    held = {
        name: (_data(dtype, None, 2, sizes.tokens, inputs), _data(dtype, packing, outputs, inputs))
        for name, (inputs, outputs, packing) in MATRICES.items()
    }

    def plain() -> None:
        for name, buffers in held.items():
            models[name].execute(*buffers)

    def adapted(added: dict[str, Parts]) -> None:
        for name, buffers in held.items():
            models[f"{name} adapted"].execute(*buffers, *added[name])

    calls: dict[str, Callable[[], object]] = {"in the weights": plain}
    calls |= {f"rank {rank}": partial(adapted, _parts(dtype, rank)) for rank in sizes.ranks}
    for name, timing in interleave(calls, repeats).items():
        yield Row(
            case=f"products of a block at the published widths, {dtype}",
            variant=name,
            dtype=dtype,
            sizes=f"2 rows of {sizes.tokens} tokens",
            timing=timing,
            reference=name == "in the weights",
        )


def _makers(dtype: DType) -> dict[str, Callable[[], Typed]]:
    """Every product, plain and with low-rank parts."""

    def given(*shape: int | str, of: DType = dtype) -> TensorType:
        return TensorType(of, list(shape), DeviceRef.CPU())

    makers: dict[str, Callable[[], Typed]] = {}
    for name, (inputs, outputs, packing) in MATRICES.items():
        (panels, units, numbers), gated = ops.packed_shape(inputs, outputs, dtype), packing == "gated"
        x, weight = given("items", "length", inputs), given(panels, units, numbers)
        down, up = given("parts", "rank_panels", units, numbers), given("parts", panels, "rank_units", numbers)
        more: dict[str, Any] = {"outputs": outputs // 2 if gated else outputs}
        makers[name] = partial(Op, partial(ops.gated_linear if gated else ops.linear, **more), [x, weight])
        types = [x, weight, down, up, given("items", of=DType.int32)]
        makers[f"{name} adapted"] = partial(Op, partial(adapted_linear, **more, gated=gated), types)
    return makers


def _parts(dtype: ModelDtype, rank: int) -> dict[str, Parts]:
    """Of two adapters that have queries, keys and values, and gates and ups, apart: their ranks add up."""
    stacked, which = {"qkv": 3, "w13": 2}, Buffer.from_numpy(np.arange(2, dtype=np.int32))
    made = {}
    for name, (inputs, outputs, packing) in MATRICES.items():
        own = -(-rank * stacked.get(name, 1) // ops.PANEL) * ops.PANEL
        made[name] = (_data(dtype, "panels", 2, own, inputs), _data(dtype, packing, 2, outputs, own), which)
    return made


def _data(dtype: ModelDtype, packing: Packing | None, *shape: int) -> Buffer:
    values = np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.02)
    bits: Any = values if dtype == "float32" else bfloat16_bits(values)
    return packed(bits, packing) if packing else Buffer.from_numpy(bits.reshape(-1)).view(DType[dtype], shape)
