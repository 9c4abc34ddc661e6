"""The project's ops for a GPU by their Mojo names, one op a function; `graphs.ops` has those for a CPU.

Which one a graph may use is decided by `graphs.kernel_library.runs_on_nvidia` and by the widths that an op supports,
which stand beside it. Everywhere else plain operations are used, the ops' twins: they define what is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from max.experimental import functional as F
from max.experimental.tensor import Tensor
from max.graph import TensorType

from max_zimage.graphs.kernel_library import libraries


def _own(
    name: str,
    inputs: Sequence[Tensor],
    results: Sequence[TensorType],
    parameters: Mapping[str, bool | int] | None = None,
) -> list[Tensor]:
    """Results of an op of `kernels`, which runs on the device of the first."""
    device = results[0].device
    return list(
        F.custom(f"max_zimage.{name}", device, inputs, results, parameters=parameters, custom_extensions=libraries())
    )
