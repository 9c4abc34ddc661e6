"""The matrices that adapters may stand beside, and where the files' tensors stand in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from max_zimage.checkpoint.expand import ParameterSource, transformer_names, weights
from max_zimage.graphs.model.transformer import TransformerSpec

MATRICES = {
    "attention.qkv.weight": "qkv",
    "attention.out.weight": "out",
    "feed_forward.w13.weight": "w13",
    "feed_forward.w2.weight": "w2",
}
"""The graphs' names of a block's matrices, and what `Factors` call them."""
SHARE = 0.5
"""Of a matrix's own multiplications: what its low-rank parts may take at most. Steps grow by as much."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of the files stands in a matrix of a block.

    Attributes:
        block: Number of the block, those of the noise refiner first.
        matrix: As `MATRICES` has it.
        begin: Its first row there.
        source: The whole matrix.
    """

    block: int
    matrix: str
    begin: int
    source: ParameterSource

    @property
    def where(self) -> tuple[int, str]:
        """The matrix."""
        return self.block, self.matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the whole matrix."""
        return sum(part.shape[0] for part in self.source.parts), self.source.parts[0].shape[1]

    @property
    def most(self) -> int:
        """The rank beyond which low-rank parts take more than `SHARE`."""
        outputs, inputs = self.shape
        return int(SHARE * outputs * inputs / (outputs + inputs))


@lru_cache(maxsize=4)
def matrix_places(spec: TransformerSpec) -> Mapping[str, Place]:
    """Tensors of the files, by name -> where they stand."""
    found: dict[str, Place] = {}
    starts = {"noise_refiner": 0, "layers": spec.num_refiner_layers}
    for source in weights(transformer_names(spec), "diffusers", ""):
        room, _, rest = source.engine.partition(".")
        number, _, name = rest.partition(".")
        if room not in starts or name not in MATRICES:
            continue
        begin = 0
        for part in source.parts:
            found[part.name] = Place(starts[room] + int(number), MATRICES[name], begin, source)
            begin += part.shape[0]
    return found
