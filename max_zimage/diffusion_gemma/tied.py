"""A DiffusionGemma's tensors brought into the forms that its graphs know: ties checked, experts put together.

A transform of the kind of `max_zimage.checkpoint.transforms`, applied when quantized numbers have been explained.

    tied copies (lm_head, the stack a second time) -> equal, or refused -> left out
    experts.J.{gate,up,down}_proj.weight           -> experts.{gate_up_proj, down_proj}, as unquantized files have them

Reference: transformers models/diffusion_gemma/modeling_diffusion_gemma.py, DiffusionGemmaTextExperts and
_tied_weights_keys; MAX's pipelines/architectures/diffusion_gemma/weight_adapters.py for experts one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from typing_extensions import override

from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.tensors import Files, Source, StoredTensor, Tensor
from max_zimage.checkpoint.tied import HEAD, check_equal
from max_zimage.checkpoint.transforms.base import Transform
from max_zimage.checkpoint.transforms.reshaped import Stacked
from max_zimage.diffusion_gemma.names import DECODER, ENCODER, PREFIXES
from max_zimage.errors import CheckpointError
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec

_ONE = re.compile(r"(?P<place>.*\.experts)\.(?P<number>\d+)\.(?P<product>gate|up|down)_proj\.weight")
_ALL = re.compile(r".*\.experts\.(?P<product>gate_up|down)_proj")
_PRODUCTS = {"gate_up": ("gate", "up"), "down": ("down",)}
_ONE_OF_BOTH = (
    "this engine has one stack for encoder and decoder, and one table for embedding and head; use a file whose ties "
    "were kept"
)


def arranged(spec: DiffusionGemmaSpec) -> Transform:
    """A transform that brings a DiffusionGemma's tensors into the form of its graphs.

    Args:
        spec: Its shape.

    Returns:
        The transform, which raises CheckpointError if copies of a tied tensor differ, or experts are missing.
    """

    def transform(source: Source) -> Source:
        tensors = dict(source.tensors)
        for copy, kept in _copies(tensors):
            check_equal(tensors[copy], tensors[kept], _ONE_OF_BOTH)
            del tensors[copy]
        _join_experts(tensors, spec)
        for name, tensor in tensors.items():
            found = _ALL.fullmatch(name)
            if found:
                tensors[name] = _formed(tensor, spec, found["product"])
        return replace(source, tensors=tensors)

    return transform


@dataclass(frozen=True)
class Parted(Tensor):
    """Matrices below each other as a tensor of three axes, [experts, rows, inputs].

    Attributes:
        base: [experts · rows, inputs].
    """

    base: Tensor

    @property
    @override
    def storage(self) -> str:
        return self.base.storage

    @override
    def rows(self, begin: int, end: int, files: Files) -> FloatArray:
        each = self.shape[1]
        return self.base.rows(begin * each, end * each, files).reshape(-1, *self.shape[1:])


def _copies(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Tensors that are tied to another one of the files: copy, and what is kept."""
    found = []
    for prefix in PREFIXES:
        decoder, encoder = f"{prefix}{DECODER}", f"{prefix}{ENCODER}"
        for name in tensors:
            twin = f"{decoder}{name.removeprefix(encoder)}"
            if name.startswith(encoder) and twin in tensors and not name.endswith(".layer_scalar"):
                found.append((name, twin))
        for stack in (decoder, encoder):
            table = f"{stack}embed_tokens.weight"
            if HEAD in tensors and table in tensors and HEAD not in dict(found):
                found.append((HEAD, table))
    return sorted(found, key=lambda pair: pair[0] != HEAD)  # the head first: what it is tied to may be a copy itself


def _join_experts(tensors: dict[str, Tensor], spec: DiffusionGemmaSpec) -> None:
    """Put matrices that are stored expert by expert below each other.

    Raises:
        CheckpointError: If one is missing or has another shape.
    """
    places = {found["place"] for name in tensors if (found := _ONE.fullmatch(name))}
    for place in sorted(places):
        for product, halves in _PRODUCTS.items():
            shape = _shape(spec, product)
            each = (shape[1] // len(halves), shape[2])
            parts = tuple(_taken(tensors, each, name) for name in _single(place, halves, spec.num_experts))
            first = parts[0]
            name = f"{place}.{product}_proj"
            tensors[name] = Stacked(first.file, name, "F32", (shape[0] * shape[1], shape[2]), parts)


def _single(place: str, halves: tuple[str, ...], experts: int) -> Iterator[str]:
    return (f"{place}.{expert}.{half}_proj.weight" for expert in range(experts) for half in halves)


def _taken(tensors: dict[str, Tensor], shape: tuple[int, ...], name: str) -> Tensor:
    found = tensors.pop(name, None)
    if found is None:
        raise CheckpointError(
            f"{name} is missing, and other experts of this layer are there; fetch the checkpoint again"
        )
    if found.shape != shape:
        raise CheckpointError(f"{found.file}: {name} is {list(found.shape)} and must be {list(shape)}")
    return found


def _shape(spec: DiffusionGemmaSpec, product: str) -> tuple[int, int, int]:
    if product == "down":
        return spec.num_experts, spec.hidden_size, spec.expert_size
    return spec.num_experts, 2 * spec.expert_size, spec.hidden_size


def _formed(tensor: Tensor, spec: DiffusionGemmaSpec, product: str) -> Tensor:
    """All experts of a layer in the form that graphs take.

    Raises:
        CheckpointError: If they have another shape than the configuration says.
    """
    shape = _shape(spec, product)
    below = (shape[0] * shape[1], shape[2])
    if tensor.shape not in (shape, below):
        raise CheckpointError(f"{tensor.file}: {tensor.name} is {list(tensor.shape)} and must be {list(shape)}")
    told = tensor.file, tensor.name, "F32" if not isinstance(tensor, StoredTensor) else tensor.dtype
    return tensor if tensor.shape == shape else Parted(*told, shape, tensor)
