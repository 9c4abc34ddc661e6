"""What each storage does to a weight, to the embedded transformer's velocity, and to a block of the published widths.

Files are decoded by the formulas that the loader is held to (`tests/checkpoint/test_quantized.py`, `test_gguf.py`), and
graphs of whole weights run on what they stand for. Storages in memory run the kernels that multiply codes, which round
tokens, too. In all of them the same matrices are quantized: those of blocks, without a bias, of whole groups of inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from gguf import GGMLQuantizationType, quants

from benchmarks.block import FULL as BLOCK
from benchmarks.block import QUICK as SMALL_BLOCK
from benchmarks.block import Inputs, Shape, compiled_block, engine_inputs, random_block, random_inputs
from benchmarks.machine import as_torch
from benchmarks.measure import Row, relative_l2
from benchmarks.storage_table import BLOCKS, MODELS, SURVEY, WEIGHTS
from max_zimage import ZImagePipeline
from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, Source
from max_zimage.checkpoint.transforms.base import computed
from max_zimage.graphs.linear import Codes, Storage, codes_of
from max_zimage.request.request import GenerationRequest
from tests.references import code_products
from tests.references.engine_runs import OpenTransformer, inputs_of
from tests.references.quantized import FORMATS

Decode = Callable[[torch.Tensor], torch.Tensor]
"""What a matrix, float32 [outputs, inputs], is after a file."""

SIGMA = 0.02
GROUP = 32
"""Inputs that the groups of all storages divide."""
_MATRIX = re.compile(r"(attention\.to_\w+(\.0)?|feed_forward\.w\d)\.weight$")
_SLICE = 1 << 20  # numbers; some formulas look sixteen ways at each
_PROMPT = "a red star on a blue background"


WRITTEN: Mapping[str, str] = {
    "int8 by row": "ComfyUI int8, rows",
    "fp8": "ComfyUI fp8",
    "mxfp8": "ComfyUI mxfp8",
    "nf4": "bitsandbytes nf4",
    "nvfp4": "ComfyUI nvfp4",
}
"""Storages of safetensors, as `info` calls them -> as `tests.references.quantized` does."""
_UNDIVIDED = ("fp8", "nvfp4")
"""Of these, storages with a scale for the whole matrix, which is not to be decoded in parts."""


def _decode(name: str, values: torch.Tensor) -> torch.Tensor:
    if name == "bfloat16":
        return values.bfloat16().float()
    if name not in WRITTEN:
        kind = GGMLQuantizationType[name]
        numbers = quants.dequantize(quants.quantize(values.numpy(), kind), kind)
        return torch.from_numpy(np.float32(numbers).reshape(values.shape))
    count = len(values) if name in _UNDIVIDED else max(1, _SLICE // values.shape[1])
    return torch.cat([FORMATS[WRITTEN[name]].write(part)[1] for part in values.split(count)])


FILES: Mapping[str, Decode] = {
    name: partial(_decode, name)
    for name in ("bfloat16", "Q8_0", "int8 by row", "fp8", "mxfp8", "Q5_0", "Q4_0", "nf4", "nvfp4")
}
"""Storages of files that something here can write, by the names that `info` has for them."""
MEMORY: Mapping[str, Storage] = {"int8, in memory": "int8", "q4, in memory": "q4"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured.

    Attributes:
        block: Its widths and tokens.
        in_model: Storages in memory that the embedded model is compiled for.
    """

    block: Shape
    in_model: tuple[str, ...]


FULL = Sizes(block=replace(BLOCK, tokens=320), in_model=tuple(MEMORY))
QUICK = Sizes(block=SMALL_BLOCK, in_model=())


def rows(sizes: Sizes, repeats: int) -> list[Row]:
    """Compare every storage with whole weights; nothing is timed, whatever the repeats are."""
    del repeats
    block = sizes.block
    found = [(WEIGHTS, f"960x{BLOCK.dim}", name, error) for name, error in weight_errors()]
    found += [(MODELS, "128x128", name, error) for name, error in model_errors(sizes.in_model)]
    found += [(BLOCKS, block.sizes, name, error) for name, error in block_errors(block)]
    return [
        Row(
            case=case,
            variant=name,
            dtype="float32",
            sizes=size,
            relative_l2=error,
            note=SURVEY[name] if case == WEIGHTS and name in SURVEY else "",
        )
        for case, size, name, error in found
    ]


def weight_errors() -> Iterator[tuple[str, float]]:
    """Of normal weights, as wide as the published model's."""
    values = normal(960, BLOCK.dim, seed=0)
    for name, storage in MEMORY.items():
        codes = codes_of(storage, BLOCK.dim)
        assert codes is not None
        yield name, relative_l2(_codes(values, codes), values.numpy())
    for name, decode in FILES.items():
        yield name, relative_l2(decode(values).numpy(), values.numpy())


def _codes(values: torch.Tensor, codes: Codes) -> npt.NDArray[np.float64]:
    return code_products.weights(values.numpy(), codes.bits, codes.group)


def model_errors(in_memory: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Of what the embedded transformer makes of the same latents, caption and timestep."""
    pipeline = ZImagePipeline.from_pretrained(device="cpu", dtype="float32", quantize="")
    whole = velocity(pipeline)
    for name in in_memory:
        kept = ZImagePipeline.from_pretrained(device="cpu", dtype="float32", quantize={"transformer": MEMORY[name]})
        yield name, relative_l2(velocity(kept), whole)
    for name, decode in FILES.items():
        pipeline.transformer.bind([partial(decoded, decode)])
        yield name, relative_l2(velocity(pipeline), whole)


def velocity(pipeline: ZImagePipeline) -> FloatArray:
    """One evaluation in the middle of a schedule, of latents that are half noise."""
    sources = pipeline.sources
    request = GenerationRequest.create(
        limits=sources.limits,
        defaults=sources.defaults,
        prompt=_PROMPT,
        height=128,
        width=128,
        num_inference_steps=2,
        guidance_scale=0.0,
        seed=0,
    )
    latents = np.random.default_rng(0).standard_normal((1, 16, 16, 16)).astype(np.float32)
    return OpenTransformer.of(pipeline, inputs_of(pipeline, request)).predict(latents, 1)


def decoded(decode: Decode, source: Source) -> Source:
    """A transformer's tensors with the matrices of its blocks as a file would have them."""
    moved, files = dict(source.tensors), Files()
    for name, tensor in source.tensors.items():
        if _MATRIX.search(name) and tensor.shape[1] % GROUP == 0:
            values = decode(torch.from_numpy(tensor.rows(0, tensor.shape[0], files))).numpy()
            moved[name] = computed(tensor, partial(_rows_of, values))
    return replace(source, tensors=moved)


def _rows_of(values: FloatArray, rows: FloatArray, begin: int, files: Files) -> FloatArray:
    del files
    return values[begin : begin + len(rows)]


@torch.no_grad()
def block_errors(shape: Shape) -> Iterator[tuple[str, float]]:
    """Of what one main block with normal weights adds to its tokens.

    Args:
        shape: Of the block.
    """
    block, inputs = random_block(shape), random_inputs(shape)
    matrices = {name: values for name, values in block.named_parameters() if _MATRIX.search(name)}
    for seed, values in enumerate(matrices.values()):
        values.copy_(normal(*values.shape, seed=seed))
    whole = _added(shape, block, inputs)
    for name, storage in MEMORY.items():
        yield name, relative_l2(_added(shape, block, inputs, storage), whole)
    kept = {name: values.clone() for name, values in matrices.items() if values.shape[1] % GROUP == 0}
    for name, decode in FILES.items():
        for matrix, values in kept.items():
            matrices[matrix].copy_(decode(values))
        yield name, relative_l2(_added(shape, block, inputs), whole)


def _added(
    shape: Shape, block: ZImageTransformerBlock, inputs: Inputs, storage: Storage | None = None
) -> npt.NDArray[np.float32]:
    """What comes out without what went in, which passes by every matrix and would hide most of an error."""
    graph = compiled_block(shape, block, "float32", storage)
    (out, *_) = graph(*engine_inputs(shape, block, inputs, "float32"))
    return (as_torch(out).float() - inputs.tokens).numpy()


def normal(*shape: int, seed: int) -> torch.Tensor:
    """Weights as a transformer's are: of a normal distribution."""
    return SIGMA * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
